"""Random attention problems, what attention is in plain loops, and how implementations are compared with it."""

import jax
import jax.numpy as jnp
import numpy as np


def random_case(seed, length, keys, heads, groups, size=8, dtype=jnp.float32, rows=2):
    """q, k, v and random ranges, some of them empty."""
    rng = np.random.default_rng(seed)
    q = jnp.asarray(rng.normal(size=(rows, length, heads, size)), dtype)
    k, v = (jnp.asarray(rng.normal(size=(rows, keys, groups, size)), dtype) for _ in range(2))
    start = rng.integers(0, keys + 1, (rows, length))
    end = np.minimum(start + rng.integers(0, keys, (rows, length)), keys)
    return q, k, v, jnp.asarray(start, jnp.int32), jnp.asarray(end, jnp.int32)


def packed_ranges(edges, length):
    """start, end [1, S] of causal documents between these edges; what is after the last one sees itself alone."""
    index = np.arange(length)
    edge = np.asarray([*edges, *range(edges[-1] + 1, length + 1)])
    start = edge[np.searchsorted(edge, index, "right") - 1]
    return jnp.asarray(start, jnp.int32)[None], jnp.asarray(index + 1, jnp.int32)[None]


def attend_in_loops(q, k, v, start, end):
    """The definition, a query and a head at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    repeats = q.shape[2] // k.shape[2]
    out = np.zeros_like(q)
    for b, i, h in np.ndindex(*q.shape[:3]):
        keys = slice(int(start[b, i]), int(end[b, i]))
        if keys.start < keys.stop:
            scores = k[b, keys, h // repeats] @ q[b, i, h] / np.sqrt(q.shape[3])
            weights = np.exp(scores - scores.max())
            out[b, i, h] = weights @ v[b, keys, h // repeats] / weights.sum()
    return out


def value_and_gradients(attend, q, k, v, start, end, **options):
    """The mixed values and the gradients of q, k, v for random weights of the values; compiled."""
    mix = jnp.asarray(np.random.default_rng(9).normal(size=q.shape), jnp.float32)

    def weighted(*x):
        out = attend(*x, start, end, **options)
        return jnp.sum(mix * out.astype(jnp.float32)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(weighted, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients


def assert_close(got, expected, atol):
    """Value and gradients agree, relative to the largest entry of each expected array; dtypes are as expected."""
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, expected, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=atol * max(1.0, np.abs(b).max()), rtol=0, err_msg=name)

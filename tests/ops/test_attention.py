import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from nextflow_jax.errors import UserError
from nextflow_jax.ops import attention
from nextflow_jax.ops.attention import chunked, reference
from nextflow_jax.sequence import flatten, pack_row
from tests.models import random_rows
from tests.ops.attention.cases import attend_in_loops, random_case

CASES = [(37, 37, 4, 2, 16), (20, 33, 6, 1, 8), (16, 40, 2, 2, 64), (1, 24, 4, 2, 16)]
"""S, M, H, G, block: several blocks with a rest, more keys than queries, one block, one query."""


@pytest.mark.parametrize(("length", "keys", "heads", "groups", "block"), CASES)
def test_values_are_those_of_the_definition(length, keys, heads, groups, block):
    case = random_case(0, length, keys, heads, groups)
    expected = attend_in_loops(*case)
    for attend in (reference.attend, functools.partial(chunked.attend, block=block)):
        np.testing.assert_allclose(jax.jit(attend)(*case), expected, atol=2e-6)


@pytest.mark.parametrize(("length", "keys", "heads", "groups", "block"), CASES)
def test_chunked_gradients_are_those_of_the_reference(length, keys, heads, groups, block):
    q, k, v, start, end = random_case(1, length, keys, heads, groups)
    mix = jnp.asarray(np.random.default_rng(2).normal(size=q.shape), jnp.float32)

    def gradients(attend, **options):
        return jax.jit(jax.grad(lambda *x: jnp.sum(mix * attend(*x, start, end, **options)), (0, 1, 2)))(q, k, v)

    for got, expected in zip(gradients(chunked.attend, block=block), gradients(reference.attend), strict=True):
        np.testing.assert_allclose(got, expected, atol=5e-6)


def test_bfloat16_gradients_of_keys_are_summed_over_blocks_in_float32():
    case = random_case(3, 256, 16, 2, 1, dtype=jnp.bfloat16)
    start, end = jnp.zeros_like(case[3]), jnp.full_like(case[4], 16)

    def gradient(attend, *arrays, **options):
        loss = lambda v: jnp.sum(attend(*arrays[:2], v, start, end, **options).astype(jnp.float32))  # noqa: E731
        return jax.jit(jax.grad(loss))(arrays[2])

    exact = gradient(reference.attend, *(x.astype(jnp.float32) for x in case[:3]))
    got = gradient(chunked.attend, *case[:3], block=2)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), exact, rtol=0.01)


SEGMENTS = st.one_of(
    st.integers(1, 5).map(lambda count: lambda rng: random_rows.text(rng, count)),
    st.tuples(st.sampled_from([random_rows.SQUARE, random_rows.WIDE]), st.booleans()).map(
        lambda choice: lambda rng: random_rows.image(rng, choice[0], context_block=choice[1])
    ),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(SEGMENTS, min_size=1, max_size=3), min_size=1, max_size=3), st.integers(0, 2**16))
def test_packed_documents_attend_by_the_dense_rule(makers, seed):
    """One sees one's own document up to and including one's own scale: dense, from document numbers and times alone."""
    rng = np.random.default_rng(seed)
    documents = [[make(rng) for make in segments] for segments in makers]
    flat = [flatten(segments, random_rows.VOCABULARY, random_rows.LAYOUT) for segments in documents]
    row = pack_row(flat, 240, random_rows.VOCABULARY)
    q, k, v, _, _ = random_case(seed, 240, 240, 2, 1)
    got = blockwise(q[:1], k[:1], v[:1], jnp.asarray(row.attend_start)[None], jnp.asarray(row.attend_end)[None])[0]

    time = row.positions[:, 0]
    sees = (row.document[:, None] == row.document) & (time[None] <= time[:, None]) & (row.document[:, None] > 0)
    sees |= np.eye(240, dtype=bool)
    scores = np.where(sees, np.einsum("sha,ma->hsm", q[0], k[0, :, 0]) / np.sqrt(8), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("hsm,ma->sha", weights / weights.sum(-1, keepdims=True), v[0, :, 0])
    np.testing.assert_allclose(got, expected, atol=1e-5)


blockwise = jax.jit(functools.partial(chunked.attend, block=50))


def largest_intermediate(jaxpr):
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [variable.aval.size for variable in equation.outvars if hasattr(variable.aval, "size")]
        sizes += [largest_intermediate(inner) for inner in jaxprs_in_params(equation.params)]
    return max(sizes)


def test_chunked_never_holds_scores_of_all_queries_at_once():
    q, k, v, start, end = random_case(4, 512, 512, 1, 1, size=2)

    def cotangents(attend):
        return jax.make_jaxpr(jax.grad(lambda *x: attend(*x, start, end).sum(), (0, 1, 2)))(q, k, v).jaxpr

    scores = 2 * 512 * 512
    assert largest_intermediate(cotangents(reference.attend)) >= scores
    assert largest_intermediate(cotangents(lambda *x: chunked.attend(*x, block=64))) < scores / 4


def test_auto_takes_the_platforms_choice_and_names_are_checked():
    case = random_case(5, 6, 6, 2, 1)
    auto = jax.jit(attention.attend)(*case)
    named = jax.jit(functools.partial(attention.attend, implementation=attention.AUTO["cpu"]))(*case)
    np.testing.assert_array_equal(auto, named)
    with pytest.raises(UserError, match="'chuncked' is not known; did you mean chunked"):
        attention.attend(*case, implementation="chuncked")

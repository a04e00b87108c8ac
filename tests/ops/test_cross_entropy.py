import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.ops import cross_entropy
from nextflow_jax.ops.cross_entropy import chunked, reference


@functools.cache
def case(length=21, vocabulary=40):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, length, 8)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(8, vocabulary)), jnp.float32)
    return hidden, head, jnp.asarray(rng.integers(0, vocabulary, (2, length)), jnp.int32)


def test_reference_is_the_definition_in_float64():
    hidden, head, targets = case()
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64)
    normaliser = np.log(np.exp(logits).sum(-1))
    target_logit = np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
    losses = reference.linear_cross_entropy(hidden, head, targets)
    np.testing.assert_allclose(losses.log_normaliser, normaliser, atol=1e-5)
    np.testing.assert_allclose(losses.cross_entropy, normaliser - target_logit, atol=1e-5)
    np.testing.assert_array_equal(losses.correct, logits.argmax(-1) == np.asarray(targets))


def test_large_logits_stay_finite():
    losses = reference.token_losses(jnp.asarray([[[3e4, -3e4, 0.0]]]), jnp.zeros((1, 1), jnp.int32))
    np.testing.assert_allclose(losses.cross_entropy, 0.0)
    assert losses.correct == 1


@pytest.mark.parametrize("chunk", [4, 21, 64])
def test_chunked_equals_the_reference_with_gradients(chunk):
    hidden, head, targets = case()
    mix = jnp.asarray(np.random.default_rng(1).normal(size=(2, *targets.shape)), jnp.float32)

    def value(function, hidden, head):
        losses = function(hidden, head, targets)
        return jnp.sum(mix[0] * losses.cross_entropy + mix[1] * losses.log_normaliser), losses

    def run(function):
        return jax.jit(jax.value_and_grad(functools.partial(value, function), (0, 1), has_aux=True))(hidden, head)

    expected, got = (
        run(reference.linear_cross_entropy),
        run(functools.partial(chunked.linear_cross_entropy, chunk=chunk)),
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_chunked_needs_less_memory():
    hidden, head, targets = case(length=256, vocabulary=512)

    def temporary_bytes(function):
        gradient = jax.grad(lambda *x: function(*x, targets).cross_entropy.sum(), (0, 1))
        return jax.jit(gradient).lower(hidden, head).compile().memory_analysis().temp_size_in_bytes

    plain = temporary_bytes(reference.linear_cross_entropy)
    assert temporary_bytes(functools.partial(chunked.linear_cross_entropy, chunk=16)) < plain / 4


def test_auto_chunks_only_many_logits(monkeypatch):
    hidden, head, targets = case()
    used = []
    for name, real in list(cross_entropy.IMPLEMENTATIONS.items()):
        spy = lambda *x, name=name, real=real: used.append(name) or real(*x)  # noqa: E731
        monkeypatch.setitem(cross_entropy.IMPLEMENTATIONS, name, spy)
    cross_entropy.linear_cross_entropy(hidden, head, targets)
    monkeypatch.setattr(cross_entropy, "PLAIN_LOGITS", targets.size * head.shape[1] - 1)
    cross_entropy.linear_cross_entropy(hidden, head, targets)
    assert used == ["reference", "chunked"]


def test_unknown_implementation():
    with pytest.raises(UserError, match="cross-entropy implementation 'fused' is not known"):
        cross_entropy.linear_cross_entropy(*case(), implementation="fused")

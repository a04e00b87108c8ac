import jax.numpy as jnp
import numpy as np

from nextflow_jax.ops.cross_entropy import reference
from tests.ops.cross_entropy.cases import case


def test_reference_is_the_definition_in_float64():
    hidden, head, targets = case()
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64)
    normaliser = np.log(np.exp(logits).sum(-1))
    target_logit = np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
    losses = reference.linear_cross_entropy(hidden, head, targets, label_smoothing=0.2)
    np.testing.assert_allclose(losses.log_normaliser, normaliser, atol=1e-5)
    np.testing.assert_allclose(losses.cross_entropy, normaliser - target_logit, atol=1e-5)
    np.testing.assert_array_equal(losses.correct, logits.argmax(-1) == np.asarray(targets))
    target_share = np.full(logits.shape, 0.2 / 40)
    np.put_along_axis(target_share, np.asarray(targets)[..., None], 0.8 + 0.2 / 40, -1)
    expected = (target_share * (normaliser[..., None] - logits)).sum(-1)
    np.testing.assert_allclose(losses.smoothed, expected, atol=1e-5)


def test_without_smoothing_the_cross_entropy_is_minimised():
    losses = reference.linear_cross_entropy(*case())
    np.testing.assert_array_equal(losses.smoothed, losses.cross_entropy)


def test_large_logits_stay_finite():
    losses = reference.token_losses(jnp.asarray([[[3e4, -3e4, 0.0]]]), jnp.zeros((1, 1), jnp.int32))
    np.testing.assert_allclose(losses.cross_entropy, 0.0)
    assert losses.correct == 1

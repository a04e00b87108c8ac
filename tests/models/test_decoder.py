"""The whole decoder: against NumPy in float64, and its switches against one another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.models.decoder import Decoder, DecoderInputs
from nextflow_jax.models.objective import ObjectiveConfig, hidden_loss
from tests.models import numpy_decoder, random_rows

BATCH = random_rows.packed_batch()
INPUTS = DecoderInputs.of(BATCH)


def logits_of(config, variables):
    return np.asarray(jax.jit(lambda v: Decoder(config).apply(v, INPUTS)[0])(variables))


VARIANTS = {
    "plain": {},
    "qwen2_5": {"attention_bias": True, "rope_base": 1e6, "connector": "mlp", "tied_head": True},
    "qk_norm": {"qk_norm": True, "kv_heads": 1, "norm_eps": 1e-2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_numpy_decoder(variant):
    config = random_rows.tiny_config(**VARIANTS[variant])
    _, variables = random_rows.make_decoder(config)
    got = logits_of(config, variables)
    for row in range(2):
        arrays = {name: np.asarray(array[row]) for name, array in BATCH.items()}
        expected = numpy_decoder.logits(config, numpy_decoder.to_float64(variables), arrays)
        assert expected.std() > 1
        np.testing.assert_allclose(got[row], expected, atol=1e-4)


def test_logits_are_the_product_of_hidden_states_and_head_weights():
    decoder, variables = random_rows.make_decoder(random_rows.tiny_config())
    hidden, cache = jax.jit(lambda v: decoder.apply(v, INPUTS, method="hidden"))(variables)
    head = decoder.apply(variables, method="head_weights")
    assert cache is None
    np.testing.assert_allclose(hidden @ head, logits_of(decoder.config, variables), atol=1e-4)


@functools.cache
def loss_and_gradients(**changes):
    decoder, variables = random_rows.make_decoder(random_rows.tiny_config(**changes))

    def loss(variables):
        hidden, _ = decoder.apply(variables, INPUTS, method="hidden")
        labels = (BATCH["targets"], BATCH["loss_weights"], BATCH["scale_index"])
        head = decoder.apply(variables, method="head_weights")
        return hidden_loss(hidden, head, *labels, decoder.config, ObjectiveConfig())[0]

    return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(variables))


def test_unrolling_changes_nothing():
    for got, expected in zip(loss_and_gradients(remat="dots", scan_unroll=2), loss_and_gradients(), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_bfloat16_compute_keeps_float32_logits_and_parameters_near_the_exact_ones():
    config = random_rows.tiny_config(dtype="bfloat16", initializer_range=0.05)
    _, variables = random_rows.make_decoder(config)
    logits = logits_of(config, variables)
    assert logits.dtype == np.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    exact = logits_of(random_rows.tiny_config(initializer_range=0.05), variables)
    assert np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()


def test_parameters_may_be_stored_in_bfloat16():
    _, variables = random_rows.make_decoder(random_rows.tiny_config(param_dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}

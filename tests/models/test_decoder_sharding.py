"""The decoder over eight devices equals the decoder on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from nextflow_jax.models.cache import make_cache
from nextflow_jax.models.decoder import Decoder, DecoderInputs
from nextflow_jax.models.objective import ObjectiveConfig, hidden_loss
from nextflow_jax.sharding import MeshConfig, batch_sharding, logical_context, make_mesh, make_rules, shardings_of
from tests.models import random_rows

BATCH = random_rows.packed_batch(rows=4)
MESH = MeshConfig(data=2, fsdp=2, tensor=2)


def loss(decoder, variables, batch):
    hidden, _ = decoder.apply(variables, DecoderInputs.of(batch), method="hidden")
    labels = (batch["targets"], batch["loss_weights"], batch["scale_index"])
    head = decoder.apply(variables, method="head_weights")
    return hidden_loss(hidden, head, *labels, decoder.config, ObjectiveConfig(cross_entropy="fused"))


CONFIG = random_rows.tiny_config(attention_bias=True, qk_norm=True, remat="full")
CONTEXT_MESHES = [MeshConfig(fsdp=2, tensor=2, context=2), MeshConfig(fsdp=2, context=4)]


@functools.cache
def on_one_device():
    decoder, variables = random_rows.make_decoder(CONFIG)
    step = jax.value_and_grad(functools.partial(loss, decoder), has_aux=True)
    return decoder, variables, step, jax.jit(step)(variables, BATCH)


@pytest.mark.parametrize("mesh_config", [MESH, *CONTEXT_MESHES])
def test_loss_metrics_and_gradients_equal_those_of_one_device(mesh_config):
    decoder, variables, step, expected = on_one_device()
    mesh, rules = make_mesh(mesh_config), make_rules()
    boxed = jax.eval_shape(lambda: decoder.init(jax.random.key(0), DecoderInputs.zeros(1, 1)))
    shardings = shardings_of(boxed, mesh, rules)
    spread = jax.device_put(variables, shardings)
    batch = jax.device_put(BATCH, batch_sharding(mesh, rules, ("batch", "sequence")))
    with logical_context(mesh, rules):
        got = jax.jit(step)(spread, batch)
    kernel = spread["params"]["layers"]["mlp"]["gate"]["kernel"]
    parts = mesh.shape["fsdp"] * mesh.shape["tensor"] * mesh.shape["context"]
    assert kernel.addressable_shards[0].data.size == kernel.size // parts
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_cached_decoding_equals_that_of_one_device():
    config = random_rows.tiny_config()
    decoder, variables = random_rows.make_decoder(config)
    inputs = DecoderInputs.of(BATCH)

    def run(variables, inputs):
        cache = make_cache(config, rows=4, slots=100).rewind(jnp.asarray([0, 1, 2, 3], jnp.int32))
        return decoder.apply(variables, inputs, cache)

    expected = jax.jit(run)(variables, inputs)
    mesh, rules = make_mesh(MESH), make_rules()
    with logical_context(mesh, rules):
        got = jax.jit(run)(variables, jax.device_put(inputs, batch_sharding(mesh, rules)))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_every_parameter_names_its_dimensions():
    config = random_rows.tiny_config(attention_bias=True, qk_norm=True, connector="mlp")
    boxed = jax.eval_shape(lambda: Decoder(config).init(jax.random.key(0), DecoderInputs.zeros(1, 1)))
    for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, meta.AxisMetadata)):
        assert len(leaf.names) == leaf.value.ndim
        assert set(leaf.names) <= set(make_rules())

"""Feature maps split by rows over the eight simulated devices."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from nextflow_jax.sharding import MeshConfig, logical_context, make_mesh, make_rules, replicated
from nextflow_jax.vision.cnn import PixelConfig, PixelDecoder, PixelEncoder

CONFIG = PixelConfig(
    stem=1,
    multipliers=(1, 2),
    encoder_base=4,
    decoder_base=4,
    encoder_blocks=1,
    decoder_blocks=1,
    latent=3,
    groups=2,
    attention=True,
)


def random(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def compiled(module, variables, x, mesh, argnums=(0, 1)):
    """The program for gradients of a loss that weighs every output differently; inputs and outputs whole."""

    def loss(variables, x):
        with logical_context(mesh, make_rules()):
            y = module.apply(variables, x)
        return jnp.sum(jnp.sin(y) * jnp.arange(y.size).reshape(y.shape) / y.size)

    whole = replicated(mesh)
    step = jax.jit(jax.value_and_grad(loss, argnums), in_shardings=whole, out_shardings=(whole, whole))
    return step.lower(variables, x).compile()


def collectives(text, kind):
    """Elements of every array that instructions of one kind give, of each device."""
    for line in text.splitlines():
        found = re.search(rf"= (.*?) {kind}(-start)?\(", line)
        for shape in re.findall(r"f32\[([\d,]*)\]", found[1]) if found else ():
            yield math.prod(int(size) for size in shape.split(",") if size)


@pytest.mark.parametrize(
    ("module", "shape", "mesh"),
    [
        (PixelEncoder, (2, 16, 8, 3), MeshConfig(data=2, context=4)),
        (PixelDecoder, (2, 8, 4, 3), MeshConfig(data=1, fsdp=2, tensor=2, context=2)),
        (PixelDecoder, (2, 6, 4, 3), MeshConfig(data=2, context=4)),
    ],
    ids=["encoder", "decoder, with copies on a tensor axis", "decoder, whose coarse grid four devices do not divide"],
)
def test_values_and_gradients_are_those_of_one_device(random_variables, module, shape, mesh):
    module, x = module(CONFIG, jnp.float32), random(*shape)
    variables = random_variables(module, x)
    split = compiled(module, variables, x, make_mesh(mesh))
    whole = compiled(module, variables, x, make_mesh(MeshConfig(), jax.devices()[:1]))
    assert list(collectives(split.as_text(), "collective-permute"))
    alone = jax.device_put((variables, x), jax.devices()[0])
    for a, b in zip(jax.tree.leaves(split(variables, x)), jax.tree.leaves(whole(*alone))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * max(1, np.abs(b).max()))


@pytest.mark.parametrize(
    ("module", "shape", "joined"),
    # What comes whole out of the modules: attention's keys and values; the decoder's pictures.
    [(PixelEncoder, (1, 64, 32, 3), 32 * 16 * 8), (PixelDecoder, (1, 32, 16, 3), 64 * 32 * 3)],
    ids=["encoder", "decoder"],
)
def test_only_border_rows_travel_and_memory_falls(module, shape, joined):
    """Compiled only, one picture over eight devices."""
    config = dataclasses.replace(CONFIG, multipliers=(1, 1), encoder_base=8, decoder_base=8)
    module, x = module(config, jnp.float32), jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = meta.unbox(jax.eval_shape(module.init, jax.random.key(0), x))
    split = compiled(module, variables, x, make_mesh(MeshConfig(data=1, context=8)), argnums=0)
    whole = compiled(module, variables, x, make_mesh(MeshConfig(), jax.devices()[:1]), argnums=0)
    fine_map, one_row = 64 * 32 * 8, 32 * 8
    assert max(collectives(split.as_text(), "all-gather")) <= joined < fine_map
    assert 0 < max(collectives(split.as_text(), "collective-permute")) <= one_row
    memory = [program.memory_analysis().temp_size_in_bytes for program in (split, whole)]
    assert memory[0] < 0.5 * memory[1]


def test_a_rule_turns_it_off():
    module, x = PixelDecoder(CONFIG, jnp.float32), jnp.zeros((2, 8, 4, 3))
    variables = meta.unbox(jax.eval_shape(module.init, jax.random.key(0), x))
    mesh = make_mesh(MeshConfig(data=2, context=4))

    def traced(rules):
        with logical_context(mesh, rules):
            return str(jax.make_jaxpr(lambda variables: module.apply(variables, x))(variables))

    assert "ppermute" in traced(make_rules())
    assert "ppermute" not in traced(make_rules([("image_rows", ())]))

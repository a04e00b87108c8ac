"""Discriminators: their definitions, any size and ratio, gradients without NaN, names for the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from nextflow_jax import sharding
from nextflow_jax.config import preflight
from nextflow_jax.errors import UserError
from nextflow_jax.vision.discriminator import (
    STATE,
    Convolution,
    DiscriminatorConfig,
    blur,
    discriminator,
    minibatch_deviation,
)

SMALL = {"width": 4, "max_width": 8, "layers": 2, "groups": 2}
KINDS = {
    "group": DiscriminatorConfig(**SMALL),
    "batch": DiscriminatorConfig(**SMALL, norm="batch"),
    "spectral": DiscriminatorConfig(**SMALL, norm="spectral"),
    "plain": DiscriminatorConfig(**SMALL, norm="none"),
    "stylegan": DiscriminatorConfig(kind="stylegan", **SMALL),
}


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)), jnp.float32)


def fresh(config, shape=(1, 12, 12)):
    """Random variables; compiling the initialisers takes longer than any test."""
    abstract = meta.unbox(jax.eval_shape(discriminator(config).init, jax.random.key(0), images(*shape)))
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * generator.normal(size=leaf.shape), leaf.dtype), abstract)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_any_size_and_ratio(config):
    variables = fresh(config)
    for size in ((12, 12), (16, 24), (13, 31)):
        logits = jax.eval_shape(discriminator(config).apply, variables, images(3, *size))
        after = tuple(side // 4 - 2 for side in size) if config.kind == "patchgan" else (1, 1)
        assert logits.shape == (3, *after) and logits.dtype == jnp.float32


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_gradients_at_zeros_are_finite(config):
    """Of the logits, and of the squared gradients that R1 is made of."""
    variables = fresh(config)
    zeros = jnp.zeros((4, 12, 12, 3))

    def penalty(params, x):
        apply = discriminator(config).apply
        gradient = jax.grad(lambda y: jnp.sum(apply({**variables, "params": params}, y)))(x)
        return jnp.sum(jnp.square(gradient)) + jnp.sum(apply({**variables, "params": params}, x))

    value, gradients = jax.jit(jax.value_and_grad(penalty, argnums=(0, 1)))(variables["params"], zeros)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradients)))


def test_a_patch_is_as_wide_as_published():
    """A logit of a three-layer PatchGAN depends on 70 x 70 pixels and no more."""
    config = DiscriminatorConfig(width=1, max_width=1, norm="none")
    module = discriminator(config)
    variables = jax.tree.map(jnp.ones_like, fresh(config, (1, 96, 96)))
    logits = jax.eval_shape(module.apply, variables, images(1, 96, 96))
    assert logits.shape == (1, 10, 10)
    positive = jnp.ones((1, 96, 96, 3))  # everything stays positive: no unit is off
    seen = jax.jit(jax.grad(lambda x: module.apply(variables, x)[0, 5, 5]))(positive)[0, :, :, 0] > 0
    assert {int(seen.any(axis).sum()) for axis in (0, 1)} == {70}


def test_blur_keeps_constants_halves_and_removes_stripes():
    x = jnp.broadcast_to(jnp.asarray([1.0, -1.0])[jnp.arange(9) % 2][None, None, :, None], (1, 8, 9, 2))
    inner = (slice(None), slice(1, -2), slice(1, -2))
    np.testing.assert_allclose(blur(x)[inner], 0, atol=1e-6)
    np.testing.assert_allclose(blur(jnp.ones_like(x))[inner], 1, rtol=1e-6)
    assert blur(x, 2).shape == (1, 4, 5, 2) and blur(x[:, :1, :1], 2).shape == (1, 1, 1, 2)
    np.testing.assert_allclose(blur(x, 2), blur(x)[:, ::2, ::2], atol=1e-7)


def test_minibatch_deviation_is_that_of_neighbours():
    x = np.random.default_rng(0).normal(size=(6, 2, 3, 5)).astype(np.float32)
    out = minibatch_deviation(jnp.asarray(x), 4)  # 4 does not divide 6: groups of 3
    for start in (0, 3):
        expected = x[start : start + 3].std(axis=0).mean()
        np.testing.assert_allclose(out[start : start + 3], np.full((3, 2, 3, 1), expected), rtol=1e-4)
    np.testing.assert_allclose(minibatch_deviation(jnp.ones((4, 2, 2, 1)), 4), 1e-4, rtol=1e-4)


def test_spectral_norm_settles_at_the_largest_singular_value():
    module = Convolution(6, 3, 1, jnp.float32, "spectral", (None, None))
    x = images(1, 3, 3)
    variables = meta.unbox(module.init(jax.random.key(0), x))
    update = jax.jit(lambda v: module.apply(v, x, update=True, mutable=[STATE])[1])
    for _ in range(60):
        variables = {**variables, **update(variables)}
    kernel = np.asarray(variables["params"]["kernel"])
    largest = np.linalg.svd(kernel.reshape(-1, 6), compute_uv=False)[0]
    scaled = {"params": {**variables["params"], "kernel": kernel / largest}}
    plain = Convolution(6, 3, 1, jnp.float32, "normal", (None, None)).apply(scaled, x)
    np.testing.assert_allclose(module.apply(variables, x), plain, rtol=2e-3, atol=1e-4)


def test_equalised_kernels_start_at_unit_deviation_and_keep_variance():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 32)), jnp.float32)
    module = Convolution(64, 3, 1, jnp.float32, "equalised", (None, None))
    variables = meta.unbox(module.init(jax.random.key(0), x))
    assert np.std(variables["params"]["kernel"]) == pytest.approx(1, abs=0.02)
    assert np.std(module.apply(variables, x)[:, 1:-1, 1:-1]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", ["group", "stylegan"])
def test_every_wide_dimension_can_be_split(kind):
    """Channels over two tensor devices: every array but the head's and the biases of one channel finds its place."""
    boxed = jax.eval_shape(discriminator(KINDS[kind]).init, jax.random.key(0), images(1, 12, 12))
    mesh = sharding.make_mesh(sharding.MeshConfig(data=4, tensor=2), jax.devices()[:8])
    placed = sharding.shardings_of(boxed, mesh, sharding.make_rules((("conv_out", ("tensor",)),)))
    split = {jax.tree_util.keystr(path): not s.is_fully_replicated for path, s in jax.tree.leaves_with_path(placed)}
    assert all(is_split or "head" in name for name, is_split in split.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "patchgun"}, "did you mean patchgan"),
        ({"norm": "instance"}, "config.norm = 'instance'"),
        ({"groups": 3}, "config.groups = 3: channels .* must be multiples"),
        ({"layers": 0}, "config.layers = 0: must be positive"),
        ({"dtype": "float16"}, "config.dtype"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(UserError, match=message):
        preflight(DiscriminatorConfig(**{**SMALL, **change}))


def test_channels_double_up_to_the_most():
    assert DiscriminatorConfig().channels == (64, 128, 256, 512)
    assert DiscriminatorConfig(layers=5).channels[-2:] == (512, 512)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_smallest_side_gives_one_logit(layers):
    config = DiscriminatorConfig(width=1, layers=layers, norm="none")
    size = config.smallest_side
    logits, _ = jax.eval_shape(discriminator(config).init_with_output, jax.random.key(0), images(1, size, size))
    assert size == 3 * 2**layers and logits.shape == (1, 1, 1)

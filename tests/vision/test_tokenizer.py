import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from nextflow_jax.config import from_config_dict, preflight, to_config_dict
from nextflow_jax.errors import UserError
from nextflow_jax.scales import ScheduleFamily
from nextflow_jax.sharding import LOGICAL_RULES, MeshConfig, batch_sharding, logical_context, make_mesh, shardings_of
from nextflow_jax.training.optimizer import OptimizerConfig
from nextflow_jax.vision.codec import VisionTokenizerCodec
from nextflow_jax.vision.losses import TokenizerLossConfig, tokenizer_loss
from nextflow_jax.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig, start_from_teacher


@functools.partial(jax.jit, static_argnames=("config", "train"))
def forward(config, variables, images, key=None, train=False):
    return VisionTokenizer(config).apply(variables, images, train=train, key=key, mutable=["codebook"])


@functools.partial(jax.jit, static_argnames="config")
def train_step(config, variables, images, key):
    """Loss, gradients and new codebook; the teacher is a constant."""

    def loss(params):
        out, new = forward(config, {**variables, "params": params}, images, key, train=True)
        features = jnp.ones_like(out.semantic)
        value, metrics = tokenizer_loss(out, images, features, TokenizerLossConfig())
        return value, (metrics, new["codebook"])

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])


@pytest.mark.parametrize("size", [(16, 16), (16, 24)], ids=["square", "wide"])
def test_reconstructions_have_the_size_of_the_pictures(config, variables, images, size):
    out, _ = forward(config, variables, images[size])
    schedule = config.family.schedule(size)
    assert out.reconstruction.shape == images[size].shape
    assert out.codes.shape == (len(images[size]), schedule.num_tokens)
    assert out.semantic.shape == (len(images[size]), *schedule.final_grid, config.teacher_width)
    assert np.isfinite(out.reconstruction).all()


def test_pictures_come_from_the_pixel_half_and_meaning_from_the_semantic_half(config, variables):
    features = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, config.quantizer.dim)), jnp.float32)
    split = config.quantizer.semantic_dim

    def reach(method, config):
        decode = lambda x: jnp.sum(jnp.square(VisionTokenizer(config).apply(variables, x, method=method)))  # noqa: E731
        gradient = np.abs(jax.jit(jax.grad(decode))(features)).sum(axis=(0, 1, 2))
        return gradient[:split].any(), gradient[split:].any()

    assert reach("decode_features", config) == (False, True)
    assert reach("decode_semantic", config) == (True, False)


def test_pictures_may_come_from_both_halves(config):
    both = dataclasses.replace(config, decode_from="both")
    variables = jax.eval_shape(
        lambda: VisionTokenizer(both).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False)
    )
    assert variables["params"]["pixel_expansion"]["kernel"].value.shape[0] == config.quantizer.dim


def short(config):
    """The tokenizer for pictures of 8 x 8 alone, with less to compile: two scales, one level, no refinement."""
    return dataclasses.replace(
        config,
        family=ScheduleFamily(ladder=(1, 2), stride=4, sizes=((8, 8),)),
        pixel=dataclasses.replace(config.pixel, stem=4, multipliers=(1,)),
        quantizer=dataclasses.replace(config.quantizer, refiners=0),
    )


def test_a_training_step_is_the_same_on_eight_devices(config, random_variables):
    """Pictures split by batch and rows; on fewer scales than elsewhere: partitioning a long program takes long."""
    config = short(config)
    pictures = jnp.asarray(np.random.default_rng(3).uniform(-1, 1, (8, 8, 8, 3)), jnp.float32)
    variables = random_variables(VisionTokenizer(config), pictures, train=False)
    (loss, (metrics, codebook)), gradients = train_step(config, variables, pictures, jax.random.key(1))
    boxed = jax.eval_shape(lambda: VisionTokenizer(config).init(jax.random.key(0), pictures, train=False))
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2, context=2))
    rules = {**LOGICAL_RULES, "codes": ("tensor",)}
    with logical_context(mesh, rules):
        sharded = jax.device_put(variables, shardings_of(boxed, mesh, rules))
        rows = jax.device_put(pictures, batch_sharding(mesh, rules))
        (loss_8, (metrics_8, codebook_8)), gradients_8 = train_step(config, sharded, rows, jax.random.key(1))
    np.testing.assert_allclose(loss_8, loss, rtol=1e-5)
    for ours, theirs in ((gradients_8, gradients), (codebook_8, codebook), (metrics_8, metrics)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), ours, theirs)
    assert sharded["codebook"]["quantizer"]["embedding"].sharding.spec[0] == "tensor"


def test_gradients_reach_every_parameter(config, variables, images):
    _, gradients = train_step(config, variables, images[16, 16], jax.random.key(1))
    silent = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, gradient in jax.tree_util.tree_leaves_with_path(gradients)
        if not np.asarray(gradient).any()
    ]
    assert not silent


def test_a_few_steps_lower_the_loss(config, variables, images):
    state, losses = variables, []
    for step in range(12):
        (loss, (_, codebook)), gradients = train_step(config, state, images[16, 16], jax.random.key(step))
        params = jax.tree.map(lambda leaf, gradient: leaf - 0.05 * gradient, state["params"], gradients)
        state = {"params": params, "codebook": codebook}
        losses.append(float(loss))
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])


@pytest.fixture(scope="module")
def single(config):
    """One codebook, of pixels alone; the ViT's patch then binds nothing."""
    quantizer = dataclasses.replace(config.quantizer, semantic_dim=0)
    return dataclasses.replace(config, quantizer=quantizer, vit=dataclasses.replace(config.vit, patch=7))


def test_a_single_codebook_has_no_semantic_branch_and_trains(single, random_variables, images):
    preflight(single)
    variables = random_variables(VisionTokenizer(single), jnp.zeros((1, 16, 16, 3)), train=False)
    assert not any("semantic" in name for name in variables["params"])
    assert variables["codebook"]["quantizer"]["embedding"].shape == (32, 5)
    out, _ = forward(single, variables, images[16, 16], jax.random.key(0), train=True)
    assert out.semantic is None
    weights = TokenizerLossConfig(distillation_cosine=0.0, distillation_l2=0.0)
    assert np.isfinite(tokenizer_loss(out, images[16, 16], None, weights)[0])
    with pytest.raises(ValueError, match="no semantic half"):
        VisionTokenizer(single).apply(variables, out.reconstruction[:, :4, :4, :], method="decode_semantic")


def test_a_trained_codebook_learns_with_every_option_on(config, random_variables, images):
    """Codes as a parameter, directions, rotation, entropies, one missing scale; the optimizer spares it from decay."""
    options = {"learned": "gradient", "normalise": "codes", "estimator": "rotation", "dropped_scales": "one"}
    quantizer = dataclasses.replace(config.quantizer, entropy_temperature=0.1, revive_after=1000, **options)
    config = short(dataclasses.replace(config, quantizer=quantizer))
    pictures = images[16, 16][:, ::2, ::2]
    start = random_variables(VisionTokenizer(config), pictures, train=False)
    weights = TokenizerLossConfig(
        vq=1.0, entropy_sample=0.01, entropy_batch=0.01, distillation_cosine=0.0, distillation_l2=0.0
    )

    @jax.jit
    def step(variables, key):
        def loss(params):
            out, new = forward(config, {**variables, "params": params}, pictures, key, train=True)
            value, metrics = tokenizer_loss(out, pictures, None, weights)
            return value, (metrics, new)

        (value, (metrics, new)), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda leaf, gradient: leaf - 0.05 * gradient, variables["params"], gradients)
        return {"params": params, **new}, value, metrics

    variables, losses = start, []
    for number in range(12):
        variables, loss, metrics = step(variables, jax.random.key(number))
        losses.append(float(loss))
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    assert {f"loss/{name}" for name in ("vq", "entropy_sample", "entropy_batch")} <= set(metrics)
    before, after = (tree["params"]["quantizer"]["embedding"] for tree in (start, variables))
    assert np.abs(after - before).max() > 1e-3
    codebook = VisionTokenizerCodec(config, variables).codebook
    np.testing.assert_allclose(np.linalg.norm(codebook[:, :3], axis=-1), 1, rtol=1e-5)
    assert any(re.search(pattern, "quantizer/embedding") for pattern in OptimizerConfig().no_decay)


def test_codes_are_float32_whatever_the_compute_type(config, variables, images):
    half = dataclasses.replace(config, dtype="bfloat16")
    out = jax.eval_shape(lambda: forward(half, variables, images[16, 16]))[0]
    assert {out.reconstruction.dtype, out.semantic.dtype, out.commitment[0].dtype} == {jnp.dtype("float32")}
    features = jax.eval_shape(lambda: VisionTokenizer(half).apply(variables, images[16, 16], method="encode_features"))
    assert features.dtype == jnp.float32


def test_the_semantic_encoder_starts_as_the_teachers_tower(variables):
    tower = jax.tree.map(lambda leaf: leaf + 1, variables["params"]["semantic_encoder"])
    params = start_from_teacher(variables["params"], tower)
    assert params["semantic_encoder"] is tower
    assert params["pixel_decoder"] is variables["params"]["pixel_decoder"]
    wrong = {**tower, "positions": jnp.zeros((5, 5, 8))}
    with pytest.raises(UserError, match="differs from the tokenizer's vit in positions"):
        start_from_teacher(variables["params"], wrong)


def test_the_configuration_survives_the_round_trip(config):
    assert from_config_dict(VisionTokenizerConfig, to_config_dict(config)) == config


def test_strides_that_do_not_meet_are_named(config):
    broken = dataclasses.replace(
        config,
        vit=dataclasses.replace(config.vit, patch=8),
        pixel=dataclasses.replace(config.pixel, stem=4),
        decode_from="semantic",
        dtype="float64",
    )
    fields = r"config.vit.patch = 8.*config.pixel = 8.*config.decode_from = 'semantic'.*config.dtype = 'float64'"
    with pytest.raises(UserError, match=fields):
        preflight(broken)


def test_an_unlisted_size_is_refused(config, variables):
    with pytest.raises(UserError, match="24x24 is not supported; this model knows 16x16, 16x24"):
        VisionTokenizer(config).apply(variables, jnp.zeros((1, 24, 24, 3)), train=False)


def test_the_projection_around_the_codes_may_see_neighbours(config):
    wide = dataclasses.replace(config, pixel=dataclasses.replace(config.pixel, projection_size=3))
    images = jnp.zeros((1, 16, 24, 3))
    output, variables = jax.eval_shape(
        lambda: VisionTokenizer(wide).init_with_output(jax.random.key(0), images, train=False)
    )
    params = meta.unbox(variables)["params"]
    assert output.reconstruction.shape == images.shape
    assert params["pixel_projection"]["kernel"].shape == (3, 3, 8, 5)
    assert params["pixel_expansion"]["kernel"].shape == (3, 3, 5, 8)

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.config import preflight
from nextflow_jax.errors import UserError
from nextflow_jax.scales import ScaleSchedule
from nextflow_jax.vision import residual
from nextflow_jax.vision.codebook import QuantizerConfig
from nextflow_jax.vision.quantizer import Quantizer, SelfCorrection

CONFIG = QuantizerConfig(codes=24, semantic_dim=2, pixel_dim=3, refiners=2, scale_drop=0.5)
SQUARE = ScaleSchedule(((1, 1), (2, 2), (4, 4)))
WIDE = ScaleSchedule(((1, 1), (1, 2), (2, 5), (3, 7)))
CORRECTION = SelfCorrection(share=0.5, top_k=2, temperature=1e6)
BATCH = 200


@functools.partial(jax.jit, static_argnames=("schedule", "how"))
def encode(variables, features, schedule, keys=None, how=None):
    return Quantizer(CONFIG).apply(variables, features, schedule, keys, how, method="encode")


@functools.partial(jax.jit, static_argnames="schedule")
def accumulate(variables, codes, schedule):
    return Quantizer(CONFIG).apply(variables, codes, schedule, method="accumulate")


@functools.partial(jax.jit, static_argnames=("schedule", "train"))
def forward(variables, features, schedule, key=None, train=False):
    quantizer = Quantizer(CONFIG)
    return quantizer.apply(variables, features, schedule, train=train, key=key, mutable=["codebook"])


@functools.cache
def features_of(schedule):
    shape = (BATCH, *schedule.final_grid, CONFIG.dim)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def keys_of_rows():
    return jax.random.split(jax.random.key(3), BATCH)


@pytest.fixture(scope="module")
def variables(random_variables):
    """The codebook is as before the first step: no averages yet, every code due for revival."""
    variables = random_variables(Quantizer(CONFIG), jnp.asarray(features_of(SQUARE)), SQUARE, train=False, key=None)
    fresh = {"cluster_size": jnp.zeros(24), "cluster_sum": jnp.zeros((24, 5))}
    due = jnp.full(24, CONFIG.revive_after, jnp.int32)
    return {**variables, "codebook": {**variables["codebook"], **fresh, "age": due}}


def split_codes(schedule, codes):
    return [np.asarray(codes)[:, schedule.slice(k)].reshape(-1, *grid) for k, grid in enumerate(schedule.grids)]


def distances_to_codes(rest, table):
    return np.square(rest[..., None, :] - table).sum(axis=-1)


@pytest.mark.parametrize("how", [None, CORRECTION], ids=["nearest", "corrected"])
@pytest.mark.parametrize("schedule", [SQUARE, WIDE], ids=["square", "wide"])
def test_every_route_to_the_feature_map_agrees(variables, schedule, how):
    """Encoding, partial decoding, NumPy teacher forcing and step-by-step sampling make one map at every scale.

    The targets are the nearest codes of what the INPUT codes before them left.
    """
    features = features_of(schedule)
    inputs, targets = encode(variables, features, schedule, keys_of_rows(), how)
    assert (how is None) == np.array_equal(inputs, targets)

    table = np.asarray(variables["codebook"]["embedding"])
    arrays = (np.asarray(variables["params"][name]) for name in ("refine_kernels", "refine_biases"))
    refinement = residual.Refinement(*arrays)
    forced = residual.accumulate(schedule, table[np.asarray(inputs)], refinement)
    decoded = accumulate(variables, inputs, schedule)
    sampled = residual.start(schedule, features)
    scales = zip(split_codes(schedule, inputs), split_codes(schedule, targets), decoded, forced, strict=True)
    for k, (scale_inputs, scale_targets, from_device, from_numpy) in enumerate(scales):
        distances = distances_to_codes(residual.residual_at(schedule, k, features, sampled), table)
        chosen = np.take_along_axis(distances, scale_targets[..., None], axis=-1)[..., 0]
        np.testing.assert_allclose(chosen, distances.min(axis=-1), atol=1e-4)
        sampled = residual.add_scale(schedule, k, sampled, table[scale_inputs], refinement)
        np.testing.assert_allclose(from_device, sampled, atol=1e-5)
        np.testing.assert_allclose(from_numpy, sampled, atol=1e-5)
    if how is None:
        out, _ = forward(variables, features, schedule)
        np.testing.assert_array_equal(out.codes, inputs)
        np.testing.assert_allclose(out.features, sampled, atol=1e-5)


def test_self_correction_draws_the_share_from_the_nearest(variables):
    features = features_of(SQUARE)
    inputs, targets = encode(variables, features, SQUARE, keys_of_rows(), CORRECTION)
    assert 0.2 < float(np.mean(np.not_equal(inputs, targets))) < 0.3  # half are drawn; half of those draw the nearest
    rest = residual.residual_at(SQUARE, 0, features, residual.start(SQUARE, features))
    order = np.argsort(distances_to_codes(rest, np.asarray(variables["codebook"]["embedding"])), axis=-1)
    assert all(code in order[row, 0, 0, :2] for row, code in enumerate(np.asarray(inputs)[:, 0]))


def test_self_correction_of_a_row_depends_on_its_key_alone(variables):
    features, keys = features_of(SQUARE), keys_of_rows()
    inputs, _ = encode(variables, features, SQUARE, keys, CORRECTION)
    turned, _ = encode(variables, features[::-1], SQUARE, keys[::-1], CORRECTION)
    np.testing.assert_array_equal(turned[::-1], inputs)


def test_gradients_pass_straight_through_and_reach_the_refinement(variables):
    features = features_of(SQUARE)
    weights = np.random.default_rng(4).normal(size=features.shape).astype(np.float32)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradients(params, features):
        out, _ = forward({**variables, "params": params}, features, SQUARE)
        return jnp.sum(out.features * weights)

    params_grad, features_grad = gradients(variables["params"], features)
    np.testing.assert_allclose(features_grad, weights, rtol=1e-6)
    assert np.abs(params_grad["refine_kernels"]).sum() > 0


def test_commitment_pulls_features_to_the_maps_of_all_scales(variables):
    features = features_of(SQUARE)

    @jax.jit
    @jax.value_and_grad
    def commitment(features):
        out, _ = forward(variables, features, SQUARE)
        return out.commitment[0] / out.commitment[1]

    codes, _ = encode(variables, features, SQUARE, keys_of_rows())
    errors = np.stack([features - accumulated for accumulated in accumulate(variables, codes, SQUARE)])
    value, gradient = commitment(features)
    np.testing.assert_allclose(value, np.mean(errors**2), rtol=1e-5)
    np.testing.assert_allclose(gradient, 2 * errors.mean(axis=0) / features.size, atol=1e-6)


def test_scale_drop_gives_some_images_the_map_of_fewer_scales(variables):
    out, _ = forward(variables, features_of(SQUARE), SQUARE, jax.random.key(5), train=True)
    maps = accumulate(variables, out.codes, SQUARE)
    matches = [np.abs(np.asarray(out.features) - accumulated).max(axis=(1, 2, 3)) < 1e-5 for accumulated in maps]
    np.testing.assert_array_equal(np.sum(matches, axis=0), 1)
    np.testing.assert_allclose(np.mean(matches, axis=1), [0.25, 0.25, 0.5], atol=0.1)


def test_training_moves_the_codebook_and_evaluation_does_not(variables):
    old = variables["codebook"]
    out, new = forward(variables, features_of(SQUARE), SQUARE, jax.random.key(5), train=True)
    _, same = forward(variables, features_of(SQUARE), SQUARE)
    assert not np.array_equal(new["codebook"]["embedding"], old["embedding"])
    np.testing.assert_array_equal(same["codebook"]["embedding"], old["embedding"])
    counts = np.bincount(np.asarray(out.codes).ravel(), minlength=CONFIG.codes)
    np.testing.assert_array_equal(new["codebook"]["age"], 0)  # chosen, or seeded from the data in the first step
    assert float(out.stats["codebook/revived"][0]) == np.sum(counts == 0)


def test_usage_is_reported_for_every_scale(variables):
    out, _ = forward(variables, features_of(WIDE), WIDE)
    names = {f"codebook/{what}/{scale}" for what in ("usage", "perplexity") for scale in ("scale_4", "all_scales")}
    assert names <= set(out.stats)
    assert not any("scale_5" in name for name in out.stats)


def test_impossible_self_correction_is_named():
    for change, field in (({"share": 1.1}, "share"), ({"top_k": 0}, "top_k"), ({"temperature": 0.0}, "temperature")):
        with pytest.raises(UserError, match=f"config.{field} = "):
            preflight(dataclasses.replace(SelfCorrection(), **change))

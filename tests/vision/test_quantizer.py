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
from nextflow_jax.vision.nearest import BLOCK
from nextflow_jax.vision.quantizer import Quantizer, SelfCorrection

CONFIG = QuantizerConfig(codes=24, semantic_dim=2, pixel_dim=3, refiners=2, scale_drop=0.5)
SQUARE = ScaleSchedule(((1, 1), (2, 2), (4, 4)))
WIDE = ScaleSchedule(((1, 1), (1, 2), (2, 5), (3, 7)))
SHORT = ScaleSchedule(((1, 1), (2, 3)))
CORRECTION = SelfCorrection(share=0.5, top_k=2, temperature=1e6)
BATCH = 200


@functools.partial(jax.jit, static_argnames=("schedule", "how", "config"))
def encode(variables, features, schedule, keys=None, how=None, config=CONFIG):
    return Quantizer(config).apply(variables, features, schedule, keys, how, method="encode")


@functools.partial(jax.jit, static_argnames=("schedule", "config"))
def accumulate(variables, codes, schedule, config=CONFIG):
    return Quantizer(config).apply(variables, codes, schedule, method="accumulate")


@functools.partial(jax.jit, static_argnames=("schedule", "train", "config"))
def forward(variables, features, schedule, key=None, train=False, config=CONFIG):
    quantizer = Quantizer(config)
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


TRAINED = dataclasses.replace(CONFIG, learned="gradient", normalise="codes", refiners=0)


@pytest.fixture(scope="module")
def trained(random_variables):
    """Variables of TRAINED: a table that the optimizer moves, its codes used at length one."""
    quantizer = Quantizer(TRAINED)
    variables = random_variables(quantizer, jnp.asarray(features_of(SHORT)), SHORT, train=False, key=None)
    assert set(variables["codebook"]) == {"shift", "age"}
    assert set(variables["params"]) == {"embedding"}
    return variables


def test_a_trained_table_of_directions_is_used_at_length_one(trained):
    """TokenFlow's quantizer: residual and code are compared as directions, half by half, and directions are added."""
    features = features_of(SHORT)
    out, _ = forward(trained, features, SHORT, config=TRAINED)
    table = np.asarray(trained["params"]["embedding"] + trained["codebook"]["shift"])
    unit = lambda half: half / np.linalg.norm(half, axis=-1, keepdims=True)  # noqa: E731
    directions = lambda x: np.concatenate([unit(x[..., :2]), unit(x[..., 2:])], axis=-1)  # noqa: E731
    sampled = residual.start(SHORT, features)
    for k, scale_codes in enumerate(split_codes(SHORT, out.codes)):
        rest = directions(residual.residual_at(SHORT, k, features, sampled))
        distances = distances_to_codes(rest, directions(table))
        chosen = np.take_along_axis(distances, scale_codes[..., None], axis=-1)[..., 0]
        np.testing.assert_allclose(chosen, distances.min(axis=-1), atol=1e-4)
        sampled = residual.add_scale(SHORT, k, sampled, directions(table)[scale_codes])
    np.testing.assert_allclose(out.features, sampled, atol=1e-5)
    np.testing.assert_array_equal(out.codes, encode(trained, features, SHORT, config=TRAINED)[0])


def test_the_vq_term_trains_the_table_and_pictures_do_not(trained):
    """VAR's loss: the mean over scales of the squared distance between each scale's map and the features."""
    features = features_of(SHORT)
    codes = np.asarray(forward(trained, features, SHORT, config=TRAINED)[0].codes)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def of_vq(params, features):
        out, _ = forward({**trained, "params": params}, features, SHORT, config=TRAINED)
        return out.vq[0] / out.vq[1], out.vq[0] / out.vq[1]

    @jax.jit
    @jax.value_and_grad
    def slow(table):
        table = table + trained["codebook"]["shift"]
        halves = (table[:, :2], table[:, 2:])
        table = jnp.concatenate([half / jnp.linalg.norm(half, axis=-1, keepdims=True) for half in halves], axis=-1)
        maps = residual.accumulate(SHORT, table[codes])
        return jnp.mean(jnp.stack([jnp.mean(jnp.square(features - accumulated)) for accumulated in maps]))

    @jax.jit
    @jax.grad
    def of_pictures(params):
        return jnp.sum(forward({**trained, "params": params}, features, SHORT, config=TRAINED)[0].features)

    (to_params, to_features), value = of_vq(trained["params"], features)
    expected, to_table = slow(trained["params"]["embedding"])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(to_params["embedding"], to_table, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(to_features, 0)
    np.testing.assert_array_equal(of_pictures(trained["params"])["embedding"], 0)


def test_a_trained_table_starts_from_the_data(trained):
    """All codes are due for revival before the first step: those that it does not choose become its directions."""
    due = {**trained["codebook"], "age": jnp.full(24, CONFIG.revive_after, jnp.int32)}
    variables = {**trained, "codebook": due}
    alike = np.repeat(features_of(SHORT)[:1], BATCH, axis=0)
    out, new = forward(variables, alike, SHORT, jax.random.key(5), train=True, config=TRAINED)
    counts = np.bincount(np.asarray(out.codes).ravel(), minlength=24)
    assert float(out.stats["codebook/revived"][0]) == np.sum(counts == 0) > 0
    table = np.asarray(trained["params"]["embedding"] + new["codebook"]["shift"])[counts == 0]
    np.testing.assert_allclose(np.linalg.norm(table[:, :2], axis=-1), 1, rtol=1e-4)


def test_entropies_reach_the_features_and_the_trained_table(trained):
    config = dataclasses.replace(TRAINED, entropy_temperature=0.1)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def gradients(params, features):
        out, _ = forward({**trained, "params": params}, features, SHORT, config=config)
        sample, batch = out.entropy_sample, out.entropy_batch
        return sample[0] / sample[1] + batch[0] / batch[1], (sample, batch)

    (to_params, to_features), (sample, batch) = gradients(trained["params"], features_of(SHORT))
    assert sample[1] == BATCH * SHORT.num_tokens
    assert 0 < sample[0] / sample[1] < np.log(24) and 0 < batch[0] < np.log(24)
    assert np.abs(to_params["embedding"]).sum() > 0 and (np.abs(to_features).sum(axis=-1) > 0).mean() > 0.9
    assert forward(trained, features_of(SHORT), SHORT, config=TRAINED)[0].entropy_sample is None


def test_the_rotation_gives_the_same_map_and_other_gradients(variables):
    features, config = features_of(SHORT), dataclasses.replace(CONFIG, estimator="rotation")
    weights = np.random.default_rng(4).normal(size=features.shape).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def made(config, features):
        run = lambda features: forward(variables, features, SHORT, config=config)[0].features  # noqa: E731
        value, pull = jax.vjp(run, features)
        return value, pull(jnp.asarray(weights))[0]

    (plain, copied), (rotated, turned) = made(CONFIG, features), made(config, features)
    np.testing.assert_allclose(rotated, plain, atol=1e-6)
    lengths = [np.linalg.norm(half, axis=-1) for half in (features[..., 2:], plain[..., 2:], turned[..., 2:])]
    np.testing.assert_allclose(
        lengths[2], np.linalg.norm(weights[..., 2:], axis=-1) * lengths[1] / lengths[0], rtol=1e-2
    )
    assert np.abs(turned - copied).mean() > 0.1


def test_images_may_miss_one_scale_which_the_later_ones_explain(variables):
    config = dataclasses.replace(CONFIG, dropped_scales="one")
    features = features_of(SQUARE)
    out, _ = forward(variables, features, SQUARE, jax.random.key(5), train=True, config=config)
    table = np.asarray(variables["codebook"]["embedding"])
    refinement = residual.Refinement(
        *(np.asarray(variables["params"][f"refine_{name}"]) for name in ("kernels", "biases"))
    )
    grids = split_codes(SQUARE, out.codes)

    def walk(missing):
        accumulated = residual.start(SQUARE, features)
        for k, codes in enumerate(grids):
            if k != missing:
                accumulated = residual.add_scale(SQUARE, k, accumulated, table[codes], refinement)
        return accumulated

    matches = [np.abs(np.asarray(out.features) - walk(missing)).max(axis=(1, 2, 3)) < 1e-4 for missing in (1, 2, 9)]
    np.testing.assert_array_equal(np.sum(matches, axis=0), 1)
    np.testing.assert_allclose(np.mean(matches, axis=1), [0.25, 0.25, 0.5], atol=0.1)
    rest = residual.residual_at(
        SQUARE,
        2,
        features,
        walk(1) - residual.add_scale(SQUARE, 2, np.zeros_like(features), table[grids[2]], refinement),
    )[matches[0]]
    nearest = np.argmin(distances_to_codes(rest, table), axis=-1)
    assert np.mean(nearest == grids[2][matches[0]]) > 0.999


def test_quantisation_is_float32_whatever_comes_in(variables):
    half = jnp.asarray(features_of(SQUARE), jnp.bfloat16)
    ours, _ = forward(variables, half, SQUARE)
    full, _ = forward(variables, half.astype(jnp.float32), SQUARE)
    assert ours.features.dtype == jnp.float32
    np.testing.assert_array_equal(ours.codes, full.codes)
    np.testing.assert_array_equal(ours.features, full.features)
    np.testing.assert_array_equal(encode(variables, half, SQUARE)[0], full.codes)


def test_a_large_table_is_searched_in_blocks_with_the_same_draws():
    """One picture's distances are one block, two pictures' are not: codes and draws must not notice."""
    config = QuantizerConfig(codes=2**18, semantic_dim=1, pixel_dim=1)
    table = np.random.default_rng(0).normal(size=(config.codes, 2)).astype(np.float32)
    variables = {"codebook": dict.fromkeys(("embedding", "cluster_size", "cluster_sum", "age"), table)}
    features, keys = features_of(SQUARE)[:2, ..., :2], keys_of_rows()[:2]
    assert features[0, ..., 0].size * config.codes <= BLOCK < features[..., 0].size * config.codes
    both = encode(variables, features, SQUARE, keys, CORRECTION, config=config)
    for row in range(2):
        alone = encode(variables, features[row : row + 1], SQUARE, keys[row : row + 1], CORRECTION, config=config)
        for ours, theirs in zip(both, alone):
            np.testing.assert_array_equal(ours[row], theirs[0])
    assert (both[0] != both[1]).any()


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
    kinds, scales = ("usage", "unused", "perplexity"), ("scale_4", "all_scales")
    assert {f"codebook/{kind}/{scale}" for kind in kinds for scale in scales} <= set(out.stats)
    assert not any("scale_5" in name for name in out.stats)


def test_collapse_shows(variables):
    """Features that are all alike have no variance; good codes leave little of it unexplained; halves have shares."""
    value = lambda out, name: float(out.stats[f"codebook/{name}"][0] / out.stats[f"codebook/{name}"][1])  # noqa: E731
    features = features_of(SQUARE)
    out, _ = forward(variables, features, SQUARE)
    np.testing.assert_allclose(value(out, "feature_variance"), features.var(axis=(0, 1, 2)).mean(), rtol=1e-4)
    left = np.sum((features - np.asarray(out.features)) ** 2)
    spread = np.sum((features - features.mean(axis=(0, 1, 2))) ** 2)
    np.testing.assert_allclose(value(out, "unexplained"), left / spread, rtol=1e-3)
    assert 0.1 < value(out, "semantic_share") < 0.9
    alike, _ = forward(variables, np.ones_like(features), SQUARE)
    np.testing.assert_allclose(value(alike, "feature_variance"), 0, atol=1e-9)
    aimed = np.broadcast_to(variables["codebook"]["embedding"][3] + np.float32([9, 9, 0, 0, 0]), features.shape)
    aimed, _ = forward(variables, aimed, SQUARE)
    assert value(aimed, "semantic_share") > 0.9


def test_impossible_self_correction_is_named():
    for change, field in (({"share": 1.1}, "share"), ({"top_k": 0}, "top_k"), ({"temperature": 0.0}, "temperature")):
        with pytest.raises(UserError, match=f"config.{field} = "):
            preflight(dataclasses.replace(SelfCorrection(), **change))

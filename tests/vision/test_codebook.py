import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.config import preflight
from nextflow_jax.errors import UserError
from nextflow_jax.vision import codebook
from nextflow_jax.vision.codebook import Codebook, QuantizerConfig
from nextflow_jax.vision.nearest import nearest_codes, squared_distances

CONFIG = QuantizerConfig(codes=7, semantic_dim=2, pixel_dim=3, semantic_weight=0.5, pixel_weight=2.0, revive_after=3)


update_codebook = jax.jit(codebook.update_codebook, static_argnames="config")


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def slow_distance(vector, code, config):
    def part(a, b):
        if config.normalise != "no":
            a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
        return float(((a - b) ** 2).sum())

    split = config.semantic_dim
    semantic, pixel = part(vector[:split], code[:split]), part(vector[split:], code[split:])
    return config.semantic_weight * semantic + config.pixel_weight * pixel


@pytest.mark.parametrize("normalise", ["no", "distance", "codes"])
def test_distance_is_the_weighted_sum_over_the_two_halves(normalise):
    config = dataclasses.replace(CONFIG, normalise=normalise)
    vectors, codes = random(4, 5), random(7, 5, seed=1)
    expected = [[slow_distance(vector, code, config) for code in codes] for vector in vectors]
    points, table = (codebook.comparable(jnp.asarray(array), config) for array in (vectors, codes))
    np.testing.assert_allclose(squared_distances(points, table), expected, rtol=1e-4, atol=1e-5)


def test_a_single_codebook_compares_the_pixel_half_alone():
    config = dataclasses.replace(CONFIG, semantic_dim=0, pixel_dim=5, normalise="codes")
    points = codebook.comparable(jnp.asarray(random(4, 5)), config)
    np.testing.assert_allclose(np.linalg.norm(points, axis=-1), 2**0.5, rtol=1e-5)


def test_only_normalised_codes_are_added_at_length_one():
    codes = jnp.asarray(random(7, 5))
    for normalise, same in (("no", True), ("distance", True), ("codes", False)):
        made = codebook.added(codes, dataclasses.replace(CONFIG, normalise=normalise))
        assert np.array_equal(made, codes) == same
    np.testing.assert_allclose(np.linalg.norm(made[:, :2], axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(made[:, 2:], axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_directions_are_exact_at_any_length(size):
    """Published tables hold short vectors: a floor under the root would turn up in the codes."""
    vectors = size * random(4, 5)
    halves = np.split(vectors, [2], axis=-1)
    expected = np.concatenate([half / np.linalg.norm(half, axis=-1, keepdims=True) for half in halves], axis=-1)
    np.testing.assert_allclose(codebook.unit_halves(jnp.asarray(vectors), CONFIG), expected, atol=1e-6)


def test_zero_vectors_have_finite_distances_and_gradients_when_normalised():
    config = dataclasses.replace(CONFIG, normalise="distance")

    @jax.jit
    @jax.grad
    def gradient(vectors):
        return squared_distances(codebook.comparable(vectors, config), jnp.ones((7, 5))).sum()

    np.testing.assert_array_equal(gradient(jnp.zeros((2, 5))), 0)


def slow_update(before, vectors, codes, config):
    """Moving averages one code at a time; dead codes are left to the caller."""
    embedding, size = before.embedding.copy(), before.cluster_size * config.decay
    total, age = before.cluster_sum * config.decay, before.age + 1
    for code in range(config.codes):
        mine = vectors[codes == code]
        size[code] += (1 - config.decay) * len(mine)
        total[code] += (1 - config.decay) * mine.sum(axis=0)
        age[code] = 0 if len(mine) else age[code]
        if size[code] > 0:
            embedding[code] = total[code] / size[code]
    return Codebook(embedding, size, total, age)


def test_update_follows_the_moving_averages_and_revives_only_the_dead():
    age = np.array([0, 1, 3, 3, 0, 2, 0], np.int32)
    before = Codebook(random(7, 5), np.abs(random(7, seed=1)), random(7, 5, seed=2), age)
    vectors, codes = random(20, 5, seed=3), np.random.default_rng(4).choice([0, 2, 4], 20)
    after, revived = update_codebook(
        Codebook(*map(jnp.asarray, before)), vectors, codes.astype(np.int32), jax.random.key(0), CONFIG
    )
    expected = slow_update(before, vectors, codes, CONFIG)
    alive = [0, 1, 2, 4, 5, 6]  # code 2 was old and is chosen again; code 3 is not
    for name in Codebook._fields:
        np.testing.assert_allclose(getattr(after, name)[jnp.asarray(alive)], getattr(expected, name)[alive], rtol=1e-5)
    assert revived == 1
    assert after.age[3] == 0
    assert any(np.array_equal(after.embedding[3], vector) for vector in vectors)


def test_the_first_update_seeds_every_code_from_the_data():
    config = dataclasses.replace(CONFIG, codes=50)
    state = codebook.initial_codebook(jax.random.key(0), config)
    vectors = random(40, 5) + 10
    codes = nearest_codes(jnp.asarray(vectors), state.embedding)
    after, _ = update_codebook(state, jnp.asarray(vectors), codes, jax.random.key(1), config)
    assert (
        np.linalg.norm(np.asarray(after.embedding) - 10, axis=1).max()
        < np.linalg.norm(vectors - 10, axis=1).max() + 1e-4
    )


def test_codes_that_are_directions_average_directions():
    config = dataclasses.replace(CONFIG, normalise="codes", decay=0.0)
    state = codebook.initial_codebook(jax.random.key(0), config)._replace(age=jnp.zeros(7, jnp.int32))
    vectors = np.concatenate([np.full((1, 5), 9.0), np.full((1, 5), 0.1)]).astype(np.float32) * [1, 0, 1, 0, 0]
    after, _ = update_codebook(
        state, jnp.asarray(vectors, jnp.float32), jnp.zeros(2, jnp.int32), jax.random.key(1), config
    )
    np.testing.assert_allclose(after.embedding[0], [1, 0, 1, 0, 0], atol=1e-5)


def test_revival_moves_the_dead_codes_of_a_trained_table():
    config = dataclasses.replace(CONFIG, learned="gradient")
    state = codebook.initial_codebook(jax.random.key(0), config)._replace(age=jnp.asarray([0, 3, 3, 0, 0, 0, 0]))
    parameter, vectors = jnp.asarray(random(7, 5)), jnp.asarray(random(6, 5, seed=1))
    codes = jnp.asarray([0, 0, 2, 0, 0, 0], jnp.int32)
    after, revived = codebook.update_revival(state, parameter, vectors, codes, jax.random.key(0), config)
    table = np.asarray(parameter + after.shift)
    assert revived == 1
    assert any(np.allclose(table[1], vector, atol=1e-6) for vector in vectors)
    np.testing.assert_array_equal(np.delete(after.shift, 1, axis=0), 0)
    np.testing.assert_array_equal(after.age, [0, 0, 0, 1, 1, 1, 1])


def test_a_code_unused_for_ages_keeps_a_finite_embedding():
    config = dataclasses.replace(CONFIG, decay=0.0, revive_after=10_000)
    state = codebook.initial_codebook(jax.random.key(0), config)._replace(age=jnp.zeros(7, jnp.int32))
    after, revived = update_codebook(state, jnp.ones((1, 5)), jnp.zeros(1, jnp.int32), jax.random.key(1), config)
    np.testing.assert_array_equal(after.embedding[1:], state.embedding[1:])
    assert revived == 0


def test_usage_statistics_of_known_histograms():
    even = codebook.usage_statistics(jnp.asarray([[0, 1], [2, 3]], jnp.int32), 8)
    assert float(even["usage"]) == 1.0
    np.testing.assert_allclose(even["perplexity"], 4.0, rtol=1e-5)
    single = codebook.usage_statistics(jnp.full((2, 6), 5, jnp.int32), 8)
    np.testing.assert_allclose([single["usage"], single["perplexity"]], [1 / 8, 1.0], rtol=1e-5)
    assert (even["unused"], single["unused"]) == (4, 7)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"codes": 0}, "codes"),
        ({"decay": 1.0}, "decay"),
        ({"scale_drop": 1.5}, "scale_drop"),
        ({"refiners": -1}, "refiners"),
        ({"semantic_dim": -1}, "semantic_dim"),
        ({"pixel_dim": 0}, "pixel_dim"),
        ({"normalise": "yes"}, "normalise"),
        ({"learned": "ema"}, "learned"),
        ({"estimator": "gumbel"}, "estimator"),
        ({"dropped_scales": "first"}, "dropped_scales"),
        ({"entropy_temperature": -1.0}, "entropy_temperature"),
    ],
)
def test_impossible_settings_are_named(change, field):
    with pytest.raises(UserError, match=f"config.{field} = "):
        preflight(dataclasses.replace(CONFIG, **change))

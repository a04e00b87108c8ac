"""NaFlex batches: grids as transformers chooses, pictures resized and cut as torch does, and the ViT on them."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextflow_jax.errors import UserError
from nextflow_jax.vision.naflex import make_patches, patch_grid
from nextflow_jax.vision.transformer import TransformerConfig
from nextflow_jax.vision.vit import AttentionPool, Patches, ViT, ViTConfig, mixed_positions, split_patches

GOLDENS = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "siglip2.npz")
CONFIG = ViTConfig(
    patch=4, position_grid=(3, 4), transformer=TransformerConfig(width=8, layers=2, heads=2, mlp_width=12)
)
SHAPES = [(2, 5), (6, 1), (3, 4), (1, 1), (1, 9), (12, 1), (5, 2)]
LENGTH = 12


def mixture(shapes, generator):
    """Random pictures of `shapes` patches, and the same as one padded batch."""
    pictures = [generator.uniform(-1, 1, (1, 4 * y, 4 * x, 3)).astype(np.float32) for y, x in shapes]
    values = generator.uniform(-1, 1, (len(shapes), LENGTH, 48)).astype(np.float32)
    for row, picture in zip(values, pictures):
        flat = np.asarray(split_patches(jnp.asarray(picture), 4)).reshape(-1, 48)
        row[: len(flat)] = flat
    return pictures, Patches(jnp.asarray(values), jnp.asarray(shapes, jnp.int32))


@pytest.fixture(scope="module")
def params(random_variables):
    return random_variables(ViT(CONFIG, jnp.float32), jnp.zeros((1, 12, 16, 3)))


@jax.jit
def features_of(params, pictures):
    return ViT(CONFIG, jnp.float32).apply(params, pictures)


def test_one_program_serves_every_mixture(params):
    before = features_of._cache_size()
    for seed, shapes in enumerate((SHAPES, SHAPES[::-1], [(3, 3)] * len(SHAPES))):
        assert np.isfinite(features_of(params, mixture(shapes, np.random.default_rng(seed))[1])).all()
    assert features_of._cache_size() == before + 1


def test_a_mixture_gives_each_picture_the_features_it_has_alone(params):
    pictures, patches = mixture(SHAPES, np.random.default_rng(0))
    features = features_of(params, patches)
    for row in (0, 1, 2):
        alone = features_of(params, jnp.asarray(pictures[row]))[0].reshape(-1, 8)
        np.testing.assert_allclose(features[row, : len(alone)], alone, atol=1e-5)


@pytest.mark.parametrize(("table_grid", "rows_to_see"), [((3, 4), (0, 5)), ((8, 8), (1, 3, 4))])
def test_positions_are_jaxs_antialiased_resize(table_grid, rows_to_see):
    table = np.random.default_rng(0).normal(size=(*table_grid, 5)).astype(np.float32)
    mixed = mixed_positions(jnp.asarray(table), jnp.asarray(SHAPES, jnp.int32), LENGTH)
    assert np.isfinite(mixed).all()
    for row in rows_to_see:
        (rows, columns), positions = SHAPES[row], mixed[row]
        expected = jax.image.resize(table, (rows, columns, 5), "linear", antialias=True)
        np.testing.assert_allclose(positions[: rows * columns], expected.reshape(-1, 5), atol=1e-5)


def test_padding_changes_nothing_and_gets_no_gradient(params, random_variables):
    _, patches = mixture(SHAPES[:3], np.random.default_rng(0))
    pool = AttentionPool(CONFIG.transformer, jnp.float32)
    pool_params = random_variables(pool, jnp.zeros((1, LENGTH, 8)))

    @jax.jit
    def pooled(values):
        features = ViT(CONFIG, jnp.float32).apply(params, Patches(values, patches.shapes))
        return pool.apply(pool_params, features, patches.mask)

    other = jnp.where(patches.mask[..., None], patches.values, 3.0)
    np.testing.assert_allclose(pooled(other), pooled(patches.values), atol=1e-5)
    gradient = jax.jit(jax.grad(lambda values: pooled(values).sum()))(patches.values)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(np.abs(gradient).max(axis=-1) > 0, patches.mask)


def test_grids_are_those_of_transformers():
    rows = GOLDENS["grids"]
    assert len(rows) > 80
    for height, width, patch, budget, *grid in rows.tolist():
        assert patch_grid(height, width, patch, budget) == tuple(grid), (height, width, patch, budget)


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 300))
def test_grids_keep_budget_and_aspect_ratio(height, width, budget):
    rows, columns = patch_grid(height, width, 16, budget)
    assert 1 <= rows * columns <= budget
    # Some scale lies in both (rows - 1, rows] and (columns - 1, columns] patches.
    assert max((rows - 1) * width, (columns - 1) * height) < min(rows * width, columns * height) + 1e-9
    assert patch_grid(width, height, 16, budget) == (columns, rows)


def test_impossible_grids_are_refused():
    with pytest.raises(UserError, match="a picture of 0 x 5"):
        patch_grid(0, 5, 16, 256)


def test_pictures_are_resized_and_cut_as_torch_does():
    patches = make_patches([GOLDENS["picture"], np.zeros((4, 4, 3), np.float32)], patch=4, budget=24)
    count = len(GOLDENS["picture_patches"])
    assert patches.values.shape == (2, 24, 48) and patches.mask[0].sum() == count
    np.testing.assert_allclose(patches.values[0, :count], GOLDENS["picture_patches"], atol=1e-5)

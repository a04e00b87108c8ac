import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.vision.transformer import TransformerConfig
from nextflow_jax.vision.vit import AttentionPool, ViT, ViTConfig, join_patches, split_patches

CONFIG = ViTConfig(
    patch=4, position_grid=(2, 3), transformer=TransformerConfig(width=8, layers=1, heads=2, mlp_width=8)
)


def pictures(height, width):
    return np.random.default_rng(0).uniform(-1, 1, (2, height, width, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def params(random_variables):
    return random_variables(ViT(CONFIG, jnp.float32), jnp.zeros((1, 8, 12, 3)))


@functools.partial(jax.jit, static_argnames="config")
def features_of(params, images, config=CONFIG):
    return ViT(config, jnp.float32).apply(params, images)


def test_patches_hold_their_own_pixels_and_join_again():
    images = pictures(8, 12)
    patches = split_patches(jnp.asarray(images), 4)
    np.testing.assert_array_equal(patches[1, 1, 2], images[1, 4:8, 8:12].reshape(-1))
    np.testing.assert_array_equal(join_patches(patches, 4), images)


def test_any_multiple_of_the_patch_gives_a_feature_a_patch(params):
    for height, width in ((8, 12), (16, 4)):
        features = features_of(params, pictures(height, width))
        assert features.shape == (2, height // 4, width // 4, 8)
        assert np.isfinite(features).all()


def test_without_positions_patches_are_a_set(params):
    """Swapping patches swaps features when the position table is zero, and does not when it is not."""
    images = pictures(8, 12)
    swapped = np.concatenate([images[:, :, 8:], images[:, :, 4:8], images[:, :, :4]], axis=2)
    flat = {"params": {**params["params"], "positions": jnp.zeros((2, 3, 8))}}
    np.testing.assert_allclose(features_of(flat, swapped)[:, :, ::-1], features_of(flat, images), atol=1e-5)
    assert np.abs(features_of(params, swapped)[:, :, ::-1] - features_of(params, images)).max() > 1e-3


def test_positions_of_another_grid_are_resized(params):
    """A table constant along columns is the same table on a wider grid."""
    table = jnp.broadcast_to(params["params"]["positions"][:, :1], (2, 3, 8))
    wide_table = jnp.broadcast_to(params["params"]["positions"][:, :1], (2, 6, 8))
    wide_config = dataclasses.replace(CONFIG, position_grid=(2, 6))
    resized = features_of({"params": {**params["params"], "positions": table}}, pictures(8, 24))
    direct = features_of({"params": {**params["params"], "positions": wide_table}}, pictures(8, 24), wide_config)
    np.testing.assert_allclose(resized, direct, atol=1e-5)


def test_pooling_sees_every_patch_and_not_their_order(random_variables):
    features = jnp.asarray(np.random.default_rng(1).normal(size=(2, 2, 3, 8)), jnp.float32)
    pool = AttentionPool(CONFIG.transformer, jnp.float32)
    params = random_variables(pool, features)
    apply = jax.jit(pool.apply)
    np.testing.assert_allclose(apply(params, features[:, ::-1]), apply(params, features), atol=1e-5)
    cells = [(row, column) for row in range(2) for column in range(3)]
    changed = np.stack([apply(params, features.at[:, row, column].add(1.0)) for row, column in cells])
    assert np.abs(changed - apply(params, features)).max(axis=(1, 2)).min() > 1e-4

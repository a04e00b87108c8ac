"""Towers: what positions, class token and key biases may change (values: tests/convert/test_tokenflow.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from nextflow_jax.vision.peers.tower import ACTIVATIONS, Tower, TowerConfig

SIZES = {"width": 8, "layers": 2, "heads": 2, "mlp_width": 12}


def make(config, grid=(2, 3)):
    """(function of patches, random parameters, patches)."""
    tower = Tower(config, jnp.float32)
    patches = jax.random.normal(jax.random.key(1), (1, *grid, config.width))
    params = meta.unbox(jax.jit(tower.init)(jax.random.key(0), patches))
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    return jax.jit(tower.apply), params, patches


def test_without_positions_patches_are_a_set_of_any_size():
    apply, params, patches = make(TowerConfig(**SIZES, gated=True))
    turned = apply(params, patches[:, ::-1, ::-1])
    np.testing.assert_allclose(turned[:, ::-1, ::-1], apply(params, patches), atol=1e-5)
    assert apply(params, patches.reshape(1, 3, 2, -1)).shape == (1, 3, 2, 8)


def test_positions_tell_patches_apart_and_fix_the_grid():
    apply, params, patches = make(TowerConfig(**SIZES, grid=(2, 3)))
    assert np.abs(apply(params, patches[:, ::-1])[:, ::-1] - apply(params, patches)).max() > 0.01
    with pytest.raises(ValueError, match="Incompatible shapes"):
        apply(params, patches[:, :1])


def test_the_class_token_is_seen_and_dropped():
    apply, params, patches = make(TowerConfig(**SIZES, class_token=True))
    before = apply(params, patches)
    assert before.shape == patches.shape
    params["params"]["class_token"] = -2 * params["params"]["class_token"]
    assert np.abs(apply(params, patches) - before).max() > 1e-3


def test_key_biases_change_nothing():
    """A bias of keys adds the same to all scores of a query, which softmax does not see: BEiT may leave it out."""
    apply, params, patches = make(TowerConfig(**SIZES))
    before, key = apply(params, patches), params["params"]["blocks"]["key"]
    key["bias"] = key["bias"] + 1.0
    np.testing.assert_allclose(apply(params, patches), before, atol=1e-5)
    assert "bias" not in make(TowerConfig(**SIZES, key_bias=False))[1]["params"]["blocks"]["key"]


def test_activations_are_near_one_another():
    x = jnp.linspace(-4.0, 4.0, 101)
    exact = ACTIVATIONS["gelu"](x)
    assert 1e-5 < np.abs(ACTIVATIONS["gelu_tanh"](x) - exact).max() < 1e-3
    assert 1e-3 < np.abs(ACTIVATIONS["quick_gelu"](x) - exact).max() < 0.03


def test_faults_say_what_to_use():
    config = TowerConfig(**{**SIZES, "heads": 3}, activation="relu")
    assert [fault.field for fault in config.faults()] == ["width", "activation"]
    assert "use 9" in str(next(config.faults()))

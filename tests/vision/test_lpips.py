"""LPIPS equals the same layers in torch, values and gradients, and keeps the properties of a distance."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.convert.lpips import lpips_parameters
from nextflow_jax.vision.lpips import lpips_distance
from tests.goldens.lpips_arrays import SIZES, WIDTHS, random_array, random_pair

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "goldens" / "lpips.npz")


@functools.cache
def params():
    """Narrow random weights under their published names."""
    published = dict(zip(GOLDEN["names"].tolist(), GOLDEN["shapes"].tolist()))
    narrow = {3: 3, 1: 1} | dict(zip((64, 128, 256, 512), WIDTHS))
    arrays = {}
    for name, text in published.items():
        shape = [int(size) for size in text.split(",")]
        channels = [narrow.get(size, size) for size in shape[:2]]
        if name.startswith("features.") and int(name.split(".")[1]) >= 24:  # the two blocks of 512 differ in width here
            channels[0] = WIDTHS[4]
            if len(shape) > 1 and int(name.split(".")[1]) > 24:
                channels[1] = WIDTHS[4]
        if name.startswith("lin4"):
            channels[1] = WIDTHS[4]
        arrays[name] = random_array(name, (*channels, *shape[2:]))
    linear = {name: arrays.pop(name) for name in list(arrays) if name.startswith("lin")}
    return lpips_parameters(arrays, linear, WIDTHS)


@jax.jit
def distances_and_slopes(params, a, b):
    """Distances of all pairs, and the gradient of their sum by the first pictures."""

    def total(a):
        distances = lpips_distance(params, a, b)
        return jnp.sum(distances), distances

    slopes, distances = jax.grad(total, has_aux=True)(a)
    return distances, slopes


def pair(size):
    return (jnp.asarray(images.transpose(0, 2, 3, 1)) for images in random_pair(size))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradients_equal_those_of_the_same_layers_in_torch(size):
    distances, slopes = distances_and_slopes(params(), *pair(size))
    name = f"{size[0]}x{size[1]}"
    np.testing.assert_allclose(distances, GOLDEN[f"distance_{name}"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(slopes, GOLDEN[f"gradient_{name}"], atol=1e-5)


def test_it_is_a_distance():
    a, b = pair((16, 16))
    np.testing.assert_array_equal(distances_and_slopes(params(), a, a)[0], [0, 0])
    there, back = distances_and_slopes(params(), a, b)[0], distances_and_slopes(params(), b, a)[0]
    np.testing.assert_allclose(there, back, rtol=1e-6)
    assert (there > 0).all()


def test_gradients_are_finite_where_features_vanish():
    """All features of all pictures are zero, then of the first only; torch's definition gives NaN here."""
    a, b = pair((16, 16))
    linear, vgg = params()["linear"], params()["vgg"]
    nothing = {"vgg": jax.tree.map(np.zeros_like, vgg), "linear": linear}
    assert (distances_and_slopes(nothing, a, b)[1] == 0).all()
    kernels_off = jax.tree.map(lambda leaf: -np.abs(leaf), vgg)  # bright pictures switch every unit off
    distances, slopes = distances_and_slopes({"vgg": kernels_off, "linear": linear}, jnp.full_like(a, 5.0), -b)
    assert np.isfinite(slopes).all() and np.isfinite(distances).all()

"""The published names and shapes of LPIPS: each used once, and faults named."""

import pathlib

import jax
import numpy as np
import pytest

from nextflow_jax.convert.lpips import LINEAR_ROWS, VGG_ROWS, load_lpips, lpips_parameters
from nextflow_jax.convert.mapping import write
from nextflow_jax.convert.weight_files import write_arrays
from nextflow_jax.errors import UserError
from nextflow_jax.vision.lpips import lpips_shapes

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "goldens" / "lpips.npz")
WIDTHS = (2, 3, 4, 5, 6)


@pytest.fixture
def published():
    """Narrow arrays of the two files: (VGG with part of a classifier, linear)."""
    params = jax.tree.map(
        lambda leaf: np.random.default_rng(leaf.shape[-1]).normal(size=leaf.shape).astype(np.float32),
        lpips_shapes(WIDTHS),
    )
    vgg = write(VGG_ROWS, params["vgg"]) | {"classifier.0.weight": np.zeros((2, 3), np.float32)}
    return vgg, write(LINEAR_ROWS, params["linear"]), params


def test_the_published_names_and_shapes_are_ours():
    names = dict(zip(GOLDEN["names"].tolist(), GOLDEN["shapes"].tolist()))
    shapes = lpips_shapes()
    tree = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), shapes)
    arrays = write(VGG_ROWS, tree["vgg"]) | write(LINEAR_ROWS, tree["linear"])
    assert {name: ",".join(map(str, array.shape)) for name, array in arrays.items()} == names


def test_arrays_come_back_and_the_classifier_is_left_out(published):
    vgg, linear, params = published
    jax.tree.map(np.testing.assert_array_equal, lpips_parameters(vgg, linear, WIDTHS), params)


def test_faults_are_named(published):
    vgg, linear, _ = published
    broken = {**vgg, "features.30.weight": vgg["features.28.weight"]}
    del broken["features.5.bias"]
    with pytest.raises(UserError, match=r"LPIPS weights \(vgg\).*features.5.bias.*features.30.weight"):
        lpips_parameters(broken, linear, WIDTHS)
    with pytest.raises(UserError, match=r"\(linear\).*lin3.model.1.weight"):
        lpips_parameters(vgg, {name: array for name, array in linear.items() if "lin3" not in name}, WIDTHS)


def test_files_that_are_absent_or_swapped(published, tmp_path):
    with pytest.raises(UserError, match="nowhere.pth: no such weights file"):
        load_lpips(tmp_path / "nowhere.pth", tmp_path / "linear.pth")
    vgg, linear, _ = published
    write_arrays(tmp_path / "vgg.safetensors", vgg)
    write_arrays(tmp_path / "linear.safetensors", linear)
    with pytest.raises(UserError, match="does not fit the name table"):
        load_lpips(tmp_path / "linear.safetensors", tmp_path / "vgg.safetensors")

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.convert.inception import read_inception
from nextflow_jax.errors import UserError
from nextflow_jax.evals import inception
from nextflow_jax.evals.inception import InceptionFeatures, InceptionV3, abstract_params, load_inception
from tests.goldens.inception_arrays import random_array, random_images

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "goldens" / "inception.npz")


@pytest.fixture(scope="module")
def params():
    names = zip(GOLDEN["names"].tolist(), GOLDEN["shapes"].tolist())
    arrays = {name: random_array(name, tuple(map(int, shape.split(",")))) for name, shape in names if shape}
    return read_inception(arrays, abstract_params(), "golden")


def test_features_equal_those_of_the_same_layers_in_torch(params):
    images = jnp.asarray(random_images().transpose(0, 2, 3, 1))
    found = jax.jit(InceptionV3().apply)({"params": params}, images)
    assert np.abs(found - GOLDEN["features"]).max() <= 1e-4 * np.abs(GOLDEN["features"]).max()


def test_pictures_are_resized_as_torch_does():
    found = inception.network_input(jnp.asarray(GOLDEN["picture"][None]))
    assert found.shape == (1, 299, 299, 3)
    np.testing.assert_allclose(found[0, ::23, ::23].transpose(2, 0, 1), GOLDEN["resized"], atol=2e-6)


def test_features_of_a_picture_do_not_depend_on_its_batch(monkeypatch):
    """With a small network in Inception's place: what is tested are the chunks."""
    monkeypatch.setattr(
        InceptionV3, "apply", lambda self, variables, images: images[:, ::30, ::30].reshape(len(images), -1)
    )
    monkeypatch.setattr(inception, "FEATURES", 300)
    features = InceptionFeatures({}, chunk=2)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 12, 3), dtype=np.uint8)
    together = features(images)
    assert together.shape == (5, 300)
    np.testing.assert_array_equal(together, np.concatenate([features(images[i : i + 1]) for i in range(5)]))
    assert features(images[:0]).shape == (0, 300)


def test_an_absent_file_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"pt_inception\.pth"):
        load_inception(tmp_path / "pt_inception.pth")

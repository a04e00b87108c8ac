import math
import pathlib

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from nextflow_jax.convert.inception import inception_rows, read_inception
from nextflow_jax.convert.mapping import write
from nextflow_jax.errors import UserError
from nextflow_jax.evals.inception import abstract_params

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "goldens" / "inception.npz")


@pytest.fixture(scope="module")
def published():
    """Arrays of all the published names and shapes, as the golden script's torch network lists them."""
    noise = np.random.default_rng(0).random(2**22, np.float32)
    arrays = {}
    for place, (name, text) in enumerate(zip(GOLDEN["names"].tolist(), GOLDEN["shapes"].tolist())):
        shape = tuple(map(int, filter(None, text.split(","))))
        values = noise[place : place + math.prod(shape)].reshape(shape)  # no two arrays alike, and quickly made
        arrays[name] = values if shape else np.zeros((), np.int64)
    return arrays


def test_every_published_array_is_used_once_and_comes_back(published):
    params = read_inception(published, abstract_params(), "file")
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, abstract_params())
    back = write(inception_rows(abstract_params()), params)
    unused = {"fc.weight", "fc.bias", *(name for name in published if name.endswith("num_batches_tracked"))}
    assert back.keys() == published.keys() - unused
    assert all(np.array_equal(back[name], published[name]) for name in back)
    assert len(flatten_dict(params)) == len(published.keys() - unused) == 470


def part_of(published):
    """One block of the network and its arrays, for what does not need the whole."""
    arrays = {name: array for name, array in published.items() if name.startswith(("Mixed_7b", "fc"))}
    return arrays, {"Mixed_7b": abstract_params()["Mixed_7b"]}


def test_files_of_old_torch_without_step_counters_are_read_too(published):
    arrays, expected = part_of(published)
    old = {name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(arrays)
    assert jax.tree.all(jax.tree.map(np.array_equal, *(read_inception(a, expected, "file") for a in (old, arrays))))


def test_whatever_does_not_fit_is_listed_together(published):
    arrays, expected = part_of(published)
    arrays["surplus"] = np.zeros(3, np.float32)
    del arrays["Mixed_7b.branch3x3_2a.bn.running_var"]
    arrays["Mixed_7b.branch_pool.conv.weight"] = np.zeros((192, 1280, 3, 3), np.float32)
    with pytest.raises(UserError) as caught:
        read_inception(arrays, expected, "weights.pth")
    words = ("weights.pth", "surplus", "Mixed_7b.branch3x3_2a.bn.running_var", "Mixed_7b.branch_pool.conv.weight")
    assert all(word in str(caught.value) for word in words)

"""Flat dictionaries of arrays and trees are two forms of one thing, and merging lets nothing wrong through."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from nextflow_jax.convert.flat import flatten_variables, merge, unflatten_variables
from nextflow_jax.errors import UserError

TREE = {"params": {"block": {"kernel": np.ones((2, 3), np.float32)}, "step": np.asarray(7, np.int32)}}


def test_flattening_and_back_is_the_identity():
    flat = flatten_variables(TREE)
    assert list(flat) == ["params/block/kernel", "params/step"]
    assert jax.tree.all(jax.tree.map(np.array_equal, unflatten_variables(flat), TREE))


def test_boxes_of_logical_axes_come_off():
    boxed = {"params": {"kernel": nn.LogicallyPartitioned(np.ones(3), ("embed",))}}
    assert isinstance(flatten_variables(boxed)["params/kernel"], np.ndarray)


def test_merging_what_fits_gives_the_tree():
    merged = merge(flatten_variables(TREE), jax.eval_shape(lambda: TREE), "file")
    assert jax.tree.all(jax.tree.map(np.array_equal, merged, TREE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params/step": None}, "missing params/step int32[]"),
        ({"params/bias": np.zeros(3, np.float32)}, "unexpected params/bias float32[3]"),
        ({"params/block/kernel": np.ones((3, 2), np.float32)}, "float32[3, 2], the configuration asks for float32[2"),
        ({"params/step": np.asarray(7, np.int16)}, "int16[], the configuration asks for int32[]"),
    ],
)  # fmt: skip
def test_merging_names_what_does_not_fit(change, message):
    flat = {name: array for name, array in (flatten_variables(TREE) | change).items() if array is not None}
    with pytest.raises(UserError) as error:
        merge(flat, TREE, "some/file")
    assert message in str(error.value) and "some/file" in str(error.value)

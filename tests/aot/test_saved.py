"""Executables as files: what is loaded does what was saved, and only where it can."""

import pickle
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from nextflow_jax import compile_cache, sharding
from nextflow_jax.aot.saved import load_executable, save_executable
from nextflow_jax.errors import UserError


class Pair(NamedTuple):
    first: jax.Array
    second: dict[str, jax.Array]


@pytest.fixture
def saved(tmp_path):
    mesh = sharding.make_mesh(sharding.MeshConfig(data=4), jax.devices()[:4])
    rows = jax.sharding.NamedSharding(mesh, PartitionSpec("data"))
    program = jax.jit(lambda pair: Pair(2 * pair.second["a"], {"b": pair.first.sum()}))
    shape = jax.ShapeDtypeStruct((8,), np.float32, sharding=rows)
    with compile_cache.switched_off():
        save_executable(tmp_path / "pair.bin", program.lower(Pair(shape, {"a": shape})).compile())
    return tmp_path / "pair.bin", rows


def test_a_loaded_executable_runs(saved):
    path, rows = saved
    numbers = jax.device_put(np.arange(8, dtype=np.float32), rows)
    found = load_executable(path, jax.devices()[:4])(Pair(numbers, {"a": numbers}))
    np.testing.assert_array_equal(found.first, 2 * np.arange(8))
    assert found.second["b"] == 28 and found.first.sharding.is_equivalent_to(rows, 1)


def test_what_cannot_be_loaded_is_said(saved, tmp_path):
    path, _ = saved
    with pytest.raises(UserError, match="for 4 devices, ids 0 to 3; given are 2"):
        load_executable(path, jax.devices()[:2])
    with pytest.raises(UserError, match="cannot be read"):
        load_executable(tmp_path / "none.bin")
    for content in (b"nothing", b"", pickle.dumps([1])):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not an executable"):
            load_executable(path)
    path.write_bytes(pickle.dumps({"jax": "0.1", "devices": [0], "program": b""}))
    with pytest.raises(UserError, match="made with jax 0.1, .* compile it again"):
        load_executable(path)

"""Mapped arrays: those of a file read whole, bit for bit, without reading more than is looked at."""

import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.convert.mapped_files import MappedArrays
from nextflow_jax.convert.weight_files import read_arrays, write_arrays
from nextflow_jax.errors import UserError

GRID = np.arange(12).reshape(3, 4)
ARRAYS = {
    "double": GRID.astype(np.float64),
    "half": GRID.astype(np.float16),
    "brain": GRID.astype(jnp.bfloat16),
    "flag": GRID > 5,
    "byte": GRID.astype(np.uint8),
    "scalar": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
}


def test_every_element_type_and_shape(tmp_path):
    write_arrays(tmp_path / "model.safetensors", ARRAYS)
    for where in (tmp_path, tmp_path / "model.safetensors"):
        mapped = MappedArrays(where)
        assert sorted(mapped) == sorted(ARRAYS) and len(mapped) == len(ARRAYS) and "other" not in mapped
        for name, array in read_arrays(tmp_path).items():
            assert (mapped[name].dtype, mapped[name].shape) == (array.dtype, array.shape)
            assert mapped[name].tobytes() == array.tobytes()
            assert not mapped[name].flags.writeable or not array.size


def test_what_changes_in_the_file_shows_for_nothing_is_kept(tmp_path):
    file = tmp_path / "model.safetensors"
    write_arrays(file, {"a": np.zeros(4, np.float32)})
    mapped = MappedArrays(tmp_path)
    contents = bytearray(file.read_bytes())
    contents[-4:] = np.float32(3).tobytes()
    file.write_bytes(contents)
    np.testing.assert_array_equal(mapped["a"], [0, 0, 0, 3])


def test_a_truncated_file_is_refused_when_opened(tmp_path):
    file = tmp_path / "model.safetensors"
    write_arrays(file, ARRAYS)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated or corrupt .*download it again"):
        MappedArrays(tmp_path)

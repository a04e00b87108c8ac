"""Tensors of torch checkpoints as views of storages: what does not fit is refused, not read past the end."""

import io
import pickle

import numpy as np
import pytest

from nextflow_jax.convert.torch_files import Storage, Tensor, _globals, _Unpickler


def storage(values):
    return Storage("float32", len(values), lambda: np.asarray(values, np.float32).tobytes())


def test_views_share_their_storage():
    base = storage(range(10))
    odd, square = Tensor(base, 1, (5,), (2,), "float32"), Tensor(base, 0, (2, 2), (1, 5), "float32")
    np.testing.assert_array_equal(odd.array(), [1, 3, 5, 7, 9])
    np.testing.assert_array_equal(square.array(), [[0, 5], [1, 6]])
    assert odd.array().base is not None and not odd.array().flags.writeable


@pytest.mark.parametrize(
    "offset, shape, strides", [(0, (11,), (1,)), (7, (2, 2), (2, 2)), (0, (2,), (-1,)), (-1, (1,), (1,)), (0, (2,), ())]
)
def test_views_outside_their_storage_are_refused(offset, shape, strides):
    with pytest.raises(ValueError):
        Tensor(storage(range(10)), offset, shape, strides, "float32").array()


def test_a_storage_with_too_few_bytes_is_refused():
    with pytest.raises(ValueError, match="has only 8 bytes"):
        Storage("float64", 2, lambda: b"12345678").array()


@pytest.mark.parametrize("state", [{"changed": 1}, (None, {"_function": 1})])
def test_a_file_cannot_change_what_it_may_call(state):
    """BUILD sets attributes of whatever lies on the pickle's stack, also of functions that the reader hands out."""
    allowed = b"ctorch._utils\n_rebuild_parameter\n"
    program = allowed + pickle.dumps(state, protocol=0)[:-1] + b"b."
    with pytest.raises((pickle.UnpicklingError, AttributeError)):
        _Unpickler(io.BytesIO(program), Storage).load()
    assert _globals()["torch._utils", "_rebuild_parameter"]("kept") == "kept"

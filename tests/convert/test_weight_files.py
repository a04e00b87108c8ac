"""Weight files: every format and layout read alike, anything unsafe or broken refused in one clear line."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.convert.weight_files import read_arrays, write_arrays
from nextflow_jax.errors import UserError

FILES = pathlib.Path(__file__).parent.parent / "goldens" / "weight_files"
GRID = np.arange(12, dtype=np.float32).reshape(3, 4)

EXPECTED = {
    "float32": GRID,
    "float16": GRID.astype(np.float16),
    "bfloat16": GRID.astype(jnp.bfloat16),
    "float64": GRID.astype(np.float64),
    "int64": np.array(7, np.int64),
    "int32": GRID.astype(np.int32),
    "uint8": GRID.astype(np.uint8),
    "boolean": GRID > 5,
    "transposed": GRID.T,
    "expanded": np.array([[1.0] * 3, [2.0] * 3], np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "head": np.arange(4, dtype=np.float32),
    "tail": np.arange(6, 10, dtype=np.float32),
    "parameter": np.full((2,), 0.5, np.float32),
}


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_torch_checkpoints(name, tmp_path):
    arrays = read_arrays(FILES / name)
    assert_same(arrays, EXPECTED)
    write_arrays(tmp_path / "new" / "copy.safetensors", arrays)
    assert_same(read_arrays(tmp_path / "new" / "copy.safetensors"), EXPECTED)


def test_format_is_told_by_contents(tmp_path):
    disguised = tmp_path / "weights.safetensors"
    disguised.write_bytes((FILES / "zip.pth").read_bytes())
    assert_same(read_arrays(disguised), EXPECTED)


@pytest.mark.parametrize(
    "part, weight", [("auto", [3, 4]), ("model", [1, 2]), ("ema", [3, 4]), ("trainer/vae_local", [5, 6])]
)
def test_parts_of_training_checkpoints(part, weight):
    np.testing.assert_array_equal(read_arrays(FILES / "training.pt", part)["weight"], weight)


@pytest.mark.parametrize("part, message", [("vae", "its parts are model, ema"), ("optimizer", "holds no tensors")])
def test_missing_parts_are_refused(part, message):
    with pytest.raises(UserError, match=message):
        read_arrays(FILES / "training.pt", part)


@pytest.mark.parametrize(
    "name, message",
    [
        ("malicious.pt", "refused, it names __builtin__.eval"),
        ("malicious_legacy.pt", "refused, it names __builtin__.eval"),
        ("module.pt", "refused, it names torch.nn.modules.linear.Linear"),
        ("plain_pickle.bin", "truncated or corrupt|not a torch checkpoint"),
        ("nothing.pt", "no such weights file"),
    ],
)
def test_unsafe_files_are_refused_and_not_run(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        read_arrays(FILES / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "safetensors"])
def test_truncated_files_are_refused(name, share, tmp_path):
    whole = tmp_path / "whole.safetensors"
    write_arrays(whole, EXPECTED)
    data = (whole if name == "safetensors" else FILES / name).read_bytes()
    part = tmp_path / "part"
    part.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match="truncated"):
        read_arrays(part)


def test_changed_data_of_a_zip_is_noticed(tmp_path):
    data = bytearray((FILES / "zip.pth").read_bytes())
    place = data.index(GRID.tobytes())
    data[place + 4] ^= 1
    (tmp_path / "changed.pth").write_bytes(data)
    with pytest.raises(UserError, match="float32: truncated or corrupt"):
        read_arrays(tmp_path / "changed.pth")


def test_pointers_and_other_files_are_told_apart(tmp_path):
    (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    (tmp_path / "page").write_text("<html><body>not found</body></html>")
    with pytest.raises(UserError, match="Git LFS pointer"):
        read_arrays(tmp_path / "pointer")
    with pytest.raises(UserError, match="neither safetensors nor"):
        read_arrays(tmp_path / "page")


class TestShards:
    def save(self, folder, weight_map=None):
        write_arrays(folder / "a.safetensors", {"x": np.ones(2), "y": np.zeros(3)})
        write_arrays(folder / "b.safetensors", {"z": np.ones((2, 2))})
        weight_map = weight_map or {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    def test_a_folder_reads_as_one_file(self, tmp_path):
        self.save(tmp_path)
        for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
            assert sorted(read_arrays(path)) == ["x", "y", "z"]

    def test_a_folder_with_one_file(self, tmp_path):
        write_arrays(tmp_path / "model.safetensors", {"x": np.ones(2)})
        assert list(read_arrays(tmp_path)) == ["x"]

    @pytest.mark.parametrize(
        "weight_map, message",
        [
            ({"x": "a.safetensors", "y": "a.safetensors", "z": "c.safetensors"}, "no such file"),
            ({"x": "a.safetensors", "z": "b.safetensors"}, "does not hold what .* says .y."),
            ({"x": "../a.safetensors"}, "must lie beside"),
        ],
    )
    def test_an_index_that_lies_is_refused(self, weight_map, message, tmp_path):
        self.save(tmp_path, weight_map)
        with pytest.raises(UserError, match=message):
            read_arrays(tmp_path)

    def test_an_empty_folder_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="has neither"):
            read_arrays(tmp_path)

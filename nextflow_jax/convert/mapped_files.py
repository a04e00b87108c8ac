"""The tensors of a Hugging Face folder as memory-mapped arrays: of any size, and read where they are looked at.

Opening reads the headers alone. Each look-up maps one tensor; when the array is dropped its pages are given back, so
that going through a checkpoint takes the memory of what is held at once, not of the checkpoint.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from nextflow_jax.convert.weight_files import check_shard, shards_of
from nextflow_jax.errors import UserError

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
"""Element types of safetensors files by their names there."""

_LENGTH_BYTES = 8
"""A file starts with the length of its header."""


class _Place(NamedTuple):
    """Where one tensor lies."""

    file: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int


class MappedArrays(Mapping[str, np.ndarray]):
    """The arrays of a folder by name, read-only.

    Args:
      folder: with `model.safetensors`, or shards and `model.safetensors.index.json`; or one .safetensors file.

    Raises:
      UserError: no such file, a missing shard, a truncated or corrupt file, an element type that NumPy has no name for.
    """

    def __init__(self, folder: str | pathlib.Path):
        folder = pathlib.Path(folder)
        self._places: dict[str, _Place] = {}
        for shard, named in ({folder: None} if folder.is_file() else shards_of(folder)).items():
            places = dict(_places(shard))
            check_shard(shard, places, named)
            self._places.update(places)

    def __getitem__(self, name: str) -> np.ndarray:
        file, dtype, shape, offset = self._places[name]
        if not np.prod(shape):
            return np.zeros(shape, dtype)
        return np.memmap(file, dtype, "r", offset, shape or (1,)).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places


def _places(file: pathlib.Path) -> Iterator[tuple[str, _Place]]:
    try:
        with safe_open(file, "np"):  # checks that header and size agree
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: truncated or corrupt safetensors file ({error}); download it again") from error
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise UserError(f"{file}: {name} has the element type {entry['dtype']}; convert it to bfloat16 or float32")
        start = _LENGTH_BYTES + length + entry["data_offsets"][0]
        yield name, _Place(file, np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"]), start)

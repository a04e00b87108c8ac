"""Weight files as flat dictionaries of NumPy arrays: safetensors, sharded folders, torch checkpoints; no torch needed.

What a file is, is told by its first bytes and not by its name.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from nextflow_jax.convert import torch_files
from nextflow_jax.errors import UserError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

PARTS = ("ema", "model", "state_dict")
"""Where training checkpoints keep the weights, in the order in which they are looked for (TokenFlow's evaluation)."""


def read_arrays(path: str | pathlib.Path, part: str = "auto") -> dict[str, np.ndarray]:
    """The arrays of a weight file by name, in the file's dtypes (bfloat16 is ml_dtypes'); read-only, maybe strided.

    Args:
      path: a .safetensors file, a folder with `model.safetensors` or with shards and `model.safetensors.index.json`, or
        a torch checkpoint (zip or legacy format).
      part: which entry of a torch checkpoint that holds more than weights: its key, or keys joined by "/". "auto": the
        top level when tensors are there, otherwise the first of `PARTS`.

    Raises:
      UserError: absent, truncated, not a known format, unsafe to load, or no such part.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; give a .safetensors file or folder, or a torch checkpoint")
    if path.name == INDEX_FILE:
        return _read_folder(path.parent)
    with path.open("rb") as file:
        start = file.read(64)
    if start[8:9] == b"{":  # after the header's length, whose bytes may look like any other format's
        return _read_safetensors(path)
    if start.startswith((torch_files.ZIP_MAGIC, torch_files.PICKLE_MAGIC)):
        contents = torch_files.read_torch_file(path)
        return torch_files.tensors(_choose_part(contents, part, path), path)
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` or download the file itself")
    raise UserError(f"{path}: neither safetensors nor a torch checkpoint, or truncated; download it again")


def write_arrays(path: str | pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays as one safetensors file, names sorted, dtypes kept; the folder is made when it is not there."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}, path)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path}: truncated or corrupt safetensors file ({error}); download it again") from error
    except AttributeError as error:  # safetensors 0.6-0.8 on an element type that NumPy has no name for
        raise UserError(f"{path}: has an element type that is not supported ({error}); convert it first") from error


def shards_of(folder: pathlib.Path) -> dict[pathlib.Path, set[str] | None]:
    """The safetensors files of a folder, each with the names that its index says it holds (None: there is no index).

    Raises:
      UserError: no weights there, an index that cannot be read, or a shard that is not there.
    """
    index = folder / INDEX_FILE
    if not index.is_file():
        if (folder / SINGLE_FILE).is_file():
            return {folder / SINGLE_FILE: None}
        raise UserError(f"{folder}: has neither {SINGLE_FILE} nor {INDEX_FILE}; give the weights file itself")
    try:
        shard_of = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index}: not an index of safetensors shards ({error!r}); download it again") from error
    shards: dict[pathlib.Path, set[str] | None] = {}
    for shard in sorted(set(shard_of.values())):
        if pathlib.PurePath(shard).name != shard:
            raise UserError(f"{index}: names the shard {shard!r}; shards must lie beside their index")
        if not (folder / shard).is_file():
            raise UserError(f"{folder / shard}: no such file, and {INDEX_FILE} names it; download it too")
        shards[folder / shard] = {name for name, home in shard_of.items() if home == shard}
    return shards


def check_shard(shard: pathlib.Path, found: Iterable[str], named: set[str] | None) -> None:
    """Refuses a shard that does not hold what its index says."""
    differing = sorted(set(found) ^ (set(found) if named is None else named))
    if differing:
        raise UserError(f"{shard}: does not hold what {INDEX_FILE} says ({', '.join(differing[:5])})")


def _read_folder(folder: pathlib.Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for shard, named in shards_of(folder).items():
        found = _read_safetensors(shard)
        check_shard(shard, found, named)
        arrays.update(found)
    return arrays


def _choose_part(contents: Any, part: str, path: pathlib.Path) -> Mapping[str, Any]:
    chosen = contents
    if part != "auto":
        for key in part.split("/"):
            chosen = _mapping(chosen, path).get(key)
            if chosen is None:
                raise UserError(f"{path}: has no part {part!r}; {_parts(contents)}")
    elif not _has_tensors(_mapping(contents, path)):
        found = [name for name in PARTS if _has_tensors(contents.get(name))]
        chosen = contents[found[0]] if found else None
    if not _has_tensors(chosen):
        raise UserError(f"{path}: part {part!r} holds no tensors; {_parts(contents)}")
    return {str(name): value for name, value in chosen.items()}


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(entry, torch_files.Tensor) for entry in value.values())


def _mapping(value: Any, path: pathlib.Path) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{path}: holds a {type(value).__name__}, not weights by name; save a state dict")
    return value


def _parts(contents: Any) -> str:
    names = [str(name) for name, value in contents.items() if isinstance(value, Mapping)]
    return f"its parts are {', '.join(names)}" if names else "it has no parts"

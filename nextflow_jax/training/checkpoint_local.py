"""Frequent checkpoints on each machine's own disk: every process writes what its devices hold, and reads it back.

`<local>/<run>/process-<index>/<step>/{arrays.bin, index.json}`. Only the same processes on the same mesh can read them,
which is the common case: a process died and all start again. (Orbax's emergency checkpoints do likewise where copies of
the parameters are on whole slices; here any mesh will do, one replica or many.)
"""

import json
import pathlib
import shutil
import threading
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax.training.checkpoint_tree import check_tree
from nextflow_jax.training.state import TrainState, leaves_by_name

_ARRAYS, _INDEX = "arrays.bin", "index.json"
_KEPT = 2
"""All have written one before any begins the next: when a process dies, the last but one is there on all."""


class _Piece(NamedTuple):
    """Part of an array that one or more devices of this process hold."""

    name: str
    bounds: tuple[tuple[int, int], ...]
    offset: int
    crc: int


class LocalTier:
    """The local checkpoints of one process.

    Args:
      folder: of this run and process.
      key: what the layout of the state over processes and devices depends on; others' checkpoints do not count.
    """

    def __init__(self, folder: pathlib.Path, key: str) -> None:
        self._folder = folder
        self._key = key
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, state: TrainState, position: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Copies the arrays, then writes them in a thread; raises what went wrong with the one before."""
        self.wait()
        pieces = _copy_pieces(state)
        arrays = {name: (str(leaf.dtype), leaf.shape) for name, leaf in leaves_by_name(state).items()}
        about = {"key": self._key, "step": step, "data": dict(position), "meta": dict(meta), "arrays": arrays}
        self._thread = threading.Thread(target=self._write, args=(step, pieces, about), name="nextflow_jax-local")
        self._thread.start()

    def wait(self) -> None:
        """Blocks until what was saved is on disk; raises what went wrong."""
        if self._thread:
            self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if error:
            raise error

    def steps(self) -> list[int]:
        """Complete checkpoints of this layout whose bytes are those that were written, ascending."""
        found = [int(path.name) for path in self._folder.glob("*") if path.name.isdigit()]
        return sorted(step for step in found if self._is_whole(step))

    def read_about(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """(data, meta) of a checkpoint."""
        index = self._read_index(step)
        return index["data"], index["meta"]

    def check(self, step: int, abstract: TrainState) -> dict[str, jax.ShapeDtypeStruct]:
        """Refuses a checkpoint that `restore` could not make the state of; returns what its arrays are like, by name.

        Raises:
          UserError: as `check_tree`.
        """
        arrays = self._read_index(step)["arrays"]
        saved = {name: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype)) for name, (dtype, shape) in arrays.items()}
        check_tree(saved, abstract, self._folder / str(step))
        return saved

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state with the shapes, dtypes and shardings of `abstract`, each device's part from this process's disk.

        Floating-point arrays come in the dtype that is asked for.

        Raises:
          UserError: as `check`.
        """
        saved = self.check(step, abstract)
        offsets = {(piece.name, piece.bounds): piece.offset for piece in self._pieces(step)}
        bytes_ = np.memmap(self._folder / str(step) / _ARRAYS, np.uint8, "r")

        def read(name: str, leaf: Any) -> jax.Array:
            def part(index: tuple[slice, ...]) -> np.ndarray:
                bounds = _bounds(index, leaf.shape)
                shape = [stop - start for start, stop in bounds]
                if name not in saved:
                    return np.zeros(shape, leaf.dtype)
                offset, dtype = offsets[name, bounds], saved[name].dtype
                size = int(np.prod(shape)) * dtype.itemsize
                return np.array(bytes_[offset : offset + size]).view(dtype).reshape(shape).astype(leaf.dtype)

            return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

        arrays = [read(name, leaf) for name, leaf in leaves_by_name(abstract).items()]
        return jax.tree.structure(abstract).unflatten(arrays)

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, of whatever layout, and what a killed process left unfinished."""
        for path in self._folder.glob("*"):
            if not path.name.isdigit() or int(path.name) > step:
                shutil.rmtree(path)

    def _write(self, step: int, pieces: Sequence[tuple[str, tuple, np.ndarray]], about: dict[str, Any]) -> None:
        temporary = self._folder / f"{step}.unfinished"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            index, offset = [], 0
            with (temporary / _ARRAYS).open("wb") as file:
                for name, bounds, array in pieces:
                    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                    file.write(data)
                    index.append(_Piece(name, bounds, offset, zlib.crc32(data)))
                    offset += data.size
            (temporary / _INDEX).write_text(json.dumps({**about, "bytes": offset, "pieces": index}), encoding="utf-8")
            shutil.rmtree(self._folder / str(step), ignore_errors=True)
            temporary.rename(self._folder / str(step))
            for old in sorted(int(path.name) for path in self._folder.glob("*") if path.name.isdigit())[:-_KEPT]:
                shutil.rmtree(self._folder / str(old))
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            self._error = error

    def _read_index(self, step: int) -> dict[str, Any]:
        return json.loads((self._folder / str(step) / _INDEX).read_text(encoding="utf-8"))

    def _pieces(self, step: int) -> list[_Piece]:
        rows = self._read_index(step)["pieces"]
        return [_Piece(name, tuple(map(tuple, bounds)), offset, crc) for name, bounds, offset, crc in rows]

    def _is_whole(self, step: int) -> bool:
        try:
            index = self._read_index(step)
            if index["key"] != self._key or "arrays" not in index:
                return False
            pieces = self._pieces(step)
            ends = [*(piece.offset for piece in pieces[1:]), index["bytes"]]
            with (self._folder / str(step) / _ARRAYS).open("rb") as file:
                return all(zlib.crc32(file.read(end - piece.offset)) == piece.crc for piece, end in zip(pieces, ends))
        except (OSError, ValueError, KeyError):
            return False


def _copy_pieces(state: TrainState) -> list[tuple[str, tuple[tuple[int, int], ...], np.ndarray]]:
    """What this process's devices hold of every array, each part once, on the host.

    All transfers start before the first is waited for. The copies are real: on a CPU a view would change with the step
    that the arrays are donated to.
    """
    shards = {}
    for name, leaf in leaves_by_name(state).items():
        for shard in leaf.addressable_shards:
            shards.setdefault((name, _bounds(shard.index, leaf.shape)), shard.data)
    for data in shards.values():
        data.copy_to_host_async()
    return [(name, bounds, np.array(data, copy=True)) for (name, bounds), data in shards.items()]


def _bounds(index: tuple[slice, ...], shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape))

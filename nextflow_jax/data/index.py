"""The index of shards: what planning needs to know of every record, in columns that are mapped into memory.

    index/plain.npy ...    one uncompressed column a file, every split's records one after another, in shard order
    index/key_bytes.npy    all keys as UTF-8, without anything between them; key i is key_bytes[offsets[i]:offsets[i+1]]
    index/key_offsets.npy
    index/index.json       last: names of tasks and sources, number of records, SHA-256 of every file

Opening reads the header of each file: a million documents or a hundred million open alike. Schema version 1 had one
compressed index.npz; it is still read.
"""

import dataclasses
import functools
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from nextflow_jax.data import records
from nextflow_jax.data.atomic_files import file_sha256, write_atomically
from nextflow_jax.data.segments import PositionCounts, count_positions
from nextflow_jax.errors import UserError
from nextflow_jax.scales import ScheduleFamily

DIRECTORY = "index"
NAMES_FILE = "index.json"
VERSION_1_FILE = "index.npz"

_LENGTHS = ("plain", "condition", "context", "inverted_context")
_PAIRS = ("pairs", "context_pairs", "inverted_context_pairs")
_LABELS = {"task": "tasks", "source": "sources"}
"""Column of numbers -> the names that it numbers."""
_DTYPES = dict.fromkeys(_LENGTHS, np.int32) | dict.fromkeys(_PAIRS, np.int64) | dict.fromkeys(_LABELS, np.int32)
_KEYS = ("key_offsets", "key_bytes")
_COPY = "copy it from the original or extract again"


@dataclasses.dataclass(frozen=True, eq=False)
class Keys:
    """The keys of records, as long as each of them is."""

    offsets: Int[np.ndarray, "ends"]
    """Where each key starts in `data`, and where the last ends: one more than there are keys."""
    data: UInt8[np.ndarray, "bytes"]
    """UTF-8."""

    @classmethod
    def of(cls, keys: Iterable[str]) -> "Keys":
        """These keys."""
        encoded = [key.encode() for key in keys]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls(offsets, np.frombuffer(b"".join(encoded), np.uint8))

    @classmethod
    def joined(cls, parts: Sequence["Keys"]) -> "Keys":
        """The keys of all parts, one after another."""
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        data = [part.data[part.offsets[0] : part.offsets[-1]] for part in parts]
        return cls(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), np.concatenate(data))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, record: int) -> str:
        return self.data[self.offsets[record] : self.offsets[record + 1]].tobytes().decode()

    def take(self, start: int, stop: int) -> "Keys":
        """The keys of records start..stop-1."""
        return Keys(self.offsets[start : stop + 1], self.data)


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentIndex:
    """What planning needs to know of every record of a split, in shard order; columns as in `PositionCounts`."""

    keys: Keys
    task: Int[np.ndarray, "records"]
    """Index into `tasks`."""
    tasks: tuple[str, ...]
    plain: Int[np.ndarray, "records"]
    condition: Int[np.ndarray, "records"]
    context: Int[np.ndarray, "records"]
    source: Int[np.ndarray, "records"]
    """Index into `sources`."""
    sources: tuple[str, ...]
    inverted_context: Int[np.ndarray, "records"] | None = None
    """None: not in shards of versions before it. So are those below."""
    pairs: Int[np.ndarray, "records"] | None = None
    context_pairs: Int[np.ndarray, "records"] | None = None
    inverted_context_pairs: Int[np.ndarray, "records"] | None = None

    def __len__(self) -> int:
        return len(self.task)

    def key(self, record: int) -> str:
        """The key of a record."""
        return self.keys[record]

    def take(self, start: int, stop: int) -> "DocumentIndex":
        """The index of records start..stop-1."""
        columns = {name: column[start:stop] for name, column in self.columns().items()}
        return dataclasses.replace(self, keys=self.keys.take(start, stop), **columns)

    def columns(self) -> dict[str, Int[np.ndarray, "records"]]:
        """The columns of numbers that there are, by name."""
        return {name: column for name in _DTYPES if (column := getattr(self, name)) is not None}


def join_indices(parts: Sequence[DocumentIndex]) -> DocumentIndex:
    """The records of all parts, one after another; columns that one of them lacks are left out."""
    if len(parts) == 1:
        return parts[0]
    names = {
        label: tuple(sorted({name for part in parts for name in getattr(part, label)})) for label in _LABELS.values()
    }
    shared = [name for name in _DTYPES if all(getattr(part, name) is not None for part in parts)]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in shared if name not in _LABELS}
    for column, label in _LABELS.items():
        numbers = [_renumber(getattr(part, label), names[label])[getattr(part, column)] for part in parts]
        columns[column] = np.concatenate(numbers)
    return DocumentIndex(keys=Keys.joined([part.keys for part in parts]), **names, **columns)


class IndexPart:
    """Collects what the index says of the documents of one shard."""

    def __init__(self, family: ScheduleFamily) -> None:
        self._family = family
        self._keys: list[str] = []
        self._labels: dict[str, list[str]] = {"task": [], "source": []}
        self._counts: list[PositionCounts] = []

    def add(self, document: records.EncodedDocument) -> None:
        """Counts a document; BrokenRecord for one that the schedule family does not know."""
        self._keys.append(document.key)
        self._labels["task"].append(document.task)
        self._labels["source"].append(document.source)
        self._counts.append(count_positions(document, self._family))

    def save(self, path: pathlib.Path, sha256: str) -> None:
        """Writes it, with the checksum of the shard, for `write_index`."""
        keys = Keys.of(self._keys)
        part: dict[str, np.ndarray] = {"key_lengths": np.diff(keys.offsets), "key_bytes": keys.data}
        for column, labels in self._labels.items():
            part[_LABELS[column]], part[column] = np.unique(np.asarray(labels, np.str_), return_inverse=True)
        for name in (*_LENGTHS, *_PAIRS):
            part[name] = np.asarray([getattr(counts, name) for counts in self._counts], _DTYPES[name])
        part["sha256"] = np.asarray(sha256)
        write_atomically(path, lambda partial: _save_npz(partial, part))


@dataclasses.dataclass(frozen=True)
class PartSummary:
    """What the manifest says of a shard, from its part of the index."""

    records: int
    tokens: int
    sha256: str


def read_part(path: pathlib.Path) -> PartSummary | None:
    """What `IndexPart.save` wrote; None when there is no such file, or another version of the program wrote it."""
    if not path.is_file():
        return None
    with np.load(path) as part:
        if not {*_DTYPES, "key_lengths", "sha256"} <= set(part.files):
            return None
        plain = part["plain"]
        return PartSummary(len(plain), int(plain.sum()), str(part["sha256"]))


def write_index(directory: pathlib.Path, parts: Sequence[pathlib.Path]) -> None:
    """Joins what `IndexPart.save` wrote, in order, into `directory`/index; in memory is one part at a time."""
    index = directory / DIRECTORY
    index.mkdir(exist_ok=True)
    names, keys, count = _scan(parts)
    for name, dtype in _DTYPES.items():
        label = _LABELS.get(name)
        read = functools.partial(_read_numbers, name=name, label=label, names=names.get(label, ()))
        _write_column(index / f"{name}.npy", parts, count, dtype, read)
    _write_column(index / "key_bytes.npy", parts, keys, np.uint8, lambda part: part["key_bytes"])
    _write_offsets(index / "key_offsets.npy", parts, count)
    files = sorted(f"{name}.npy" for name in (*_DTYPES, *_KEYS))
    described = {"records": count, **names, "sha256": {file: file_sha256(index / file) for file in files}}
    text = json.dumps(described, indent=1) + "\n"
    write_atomically(index / NAMES_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def digest_of_index(directory: pathlib.Path) -> str:
    """SHA-256 of the file that has those of all files of the index of `directory`."""
    return file_sha256(directory / DIRECTORY / NAMES_FILE)


def load_index(directory: pathlib.Path, count: int, verify: bool = False, digest: str = "") -> DocumentIndex:
    """The index of all splits, its columns mapped into memory.

    Args:
      directory: of the shards.
      count: records that the manifest lists.
      verify: also compare the SHA-256 of every file.
      digest: what `digest_of_index` must be; empty: not known.

    Raises:
      UserError: a missing or unreadable file, one that was changed, or an index of other shards.
    """
    path = directory / VERSION_1_FILE
    if not path.is_file():
        path = directory / DIRECTORY
    try:
        if digest and digest_of_index(directory) != digest:
            raise UserError(f"{path} is of other shards than the manifest beside it; {_COPY}")
        index = _load_version_1(path) if path.is_file() else _load(path, verify)
    except (ValueError, OSError, EOFError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not readable ({error}); {_COPY}") from error
    if len(index) != count:
        raise UserError(f"{path} lists {len(index)} records, the manifest {count}; copy both from the same extraction")
    return index


def _load(path: pathlib.Path, verify: bool) -> DocumentIndex:
    if not path.is_dir():
        raise UserError(f"{path} is missing; the manifest beside it needs it; {_COPY}")
    described = json.loads((path / NAMES_FILE).read_text(encoding="utf-8"))
    if verify:
        for file, digest in described["sha256"].items():
            if (found := file_sha256(path / file)) != digest:
                raise UserError(f"{path / file} is damaged: its SHA-256 is {found}, not {digest}; {_COPY}")
    columns = {
        name: _map(path / f"{name}.npy", np.dtype(dtype), described["records"]) for name, dtype in _DTYPES.items()
    }
    offsets = _map(path / "key_offsets.npy", np.dtype(np.int64), described["records"] + 1)
    data = _map(path / "key_bytes.npy", np.dtype(np.uint8), int(offsets[-1]))
    names = {label: tuple(map(str, described[label])) for label in _LABELS.values()}
    return DocumentIndex(keys=Keys(offsets, data), **names, **columns)


def _load_version_1(path: pathlib.Path) -> DocumentIndex:
    with np.load(path) as file:
        columns: dict[str, Any] = dict(file)
    tasks = tuple(columns.pop("tasks").tolist())
    padded: Shaped[np.ndarray, "records"] = columns.pop("keys")
    lengths = np.strings.str_len(padded)
    used = np.arange(padded.dtype.itemsize) < lengths[:, None]
    data = np.ascontiguousarray(padded).view(np.uint8).reshape(used.shape)[used]
    keys = Keys(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), data)
    source = np.zeros(len(keys), np.int32)
    return DocumentIndex(keys=keys, tasks=tasks, source=source, sources=("",), **columns)


def _map(path: pathlib.Path, dtype: np.dtype, length: int) -> np.ndarray:
    """A column as an array that reads its file when it is looked at."""
    column = np.load(path, mmap_mode="r")
    if column.dtype != dtype or column.shape != (length,):
        raise UserError(f"{path} holds {column.shape} {column.dtype}, not {length} {dtype}; {_COPY}")
    return np.asarray(column)


def _scan(parts: Sequence[pathlib.Path]) -> tuple[dict[str, list[str]], int, int]:
    """(names by label, sorted; bytes of all keys; records) of the parts."""
    names: dict[str, set[str]] = {label: set() for label in _LABELS.values()}
    size = count = 0
    for path in parts:
        with np.load(path) as part:
            for label, found in names.items():
                found.update(part[label].tolist())
            lengths = part["key_lengths"]
        size, count = size + int(lengths.sum()), count + len(lengths)
    return {label: sorted(found) for label, found in names.items()}, size, count


def _read_numbers(
    part: Mapping[str, np.ndarray], name: str, label: str | None, names: Sequence[str]
) -> Int[np.ndarray, "records"]:
    return part[name] if label is None else _renumber(part[label].tolist(), names)[part[name]]


def _renumber(own: Sequence[str], names: Sequence[str]) -> Int[np.ndarray, "own"]:
    """For every one of a part's names its number among all names."""
    places = {name: number for number, name in enumerate(names)}
    return np.asarray([places[name] for name in own], np.int32)


def _write_column(
    path: pathlib.Path,
    parts: Sequence[pathlib.Path],
    length: int,
    dtype: type,
    read: Callable[[Mapping[str, np.ndarray]], np.ndarray],
) -> None:
    def write(partial: pathlib.Path) -> None:
        with open(partial, "wb") as file:
            _write_header(file, dtype, length)
            for part in parts:
                with np.load(part) as arrays:
                    read(arrays).astype(dtype).tofile(file)

    write_atomically(path, write)


def _write_offsets(path: pathlib.Path, parts: Sequence[pathlib.Path], count: int) -> None:
    def write(partial: pathlib.Path) -> None:
        end = 0
        with open(partial, "wb") as file:
            _write_header(file, np.int64, count + 1)
            np.zeros(1, np.int64).tofile(file)
            for part in parts:
                with np.load(part) as arrays:
                    ends = end + np.cumsum(arrays["key_lengths"], dtype=np.int64)
                ends.tofile(file)
                end = int(ends[-1]) if len(ends) else end

    write_atomically(path, write)


def _write_header(file: Any, dtype: type, length: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)


def _save_npz(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)

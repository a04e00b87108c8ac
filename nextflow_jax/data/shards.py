"""Shards on disk: ArrayRecord files of encoded documents, an index of their lengths, a manifest with checksums."""

import dataclasses
import pathlib
import zipfile
from collections.abc import Iterable, Sequence

import grain
import numpy as np
from array_record.python import array_record_module
from jaxtyping import Int, Shaped

from nextflow_jax.config import choose
from nextflow_jax.data import records
from nextflow_jax.data.atomic_files import file_sha256, write_atomically
from nextflow_jax.data.manifest import FILE_NAME, Manifest, ShardEntry, SplitEntry, read_manifest
from nextflow_jax.data.segments import PositionCounts, count_positions
from nextflow_jax.errors import UserError
from nextflow_jax.scales import ScheduleFamily

INDEX_FILE = "index.npz"
TOKENIZER_DIRECTORY = "tokenizer"

_WRITER_OPTIONS = "group_size:1,zstd:3"
"""One record a group: the loader reads at random. zstd takes a third of brotli's time for 1% more bytes."""

_COLUMNS = tuple(field.name for field in dataclasses.fields(PositionCounts))
_COPY = "copy it from the original or extract again"


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentIndex:
    """What planning needs to know of every record of a split, in shard order; columns as in `PositionCounts`."""

    keys: Shaped[np.ndarray, "records"]
    """UTF-8 bytes."""
    task: Int[np.ndarray, "records"]
    """Index into `tasks`."""
    tasks: tuple[str, ...]
    plain: Int[np.ndarray, "records"]
    condition: Int[np.ndarray, "records"]
    context: Int[np.ndarray, "records"]
    inverted_context: Int[np.ndarray, "records"] | None = None
    """None: not in shards of versions before it."""

    def __len__(self) -> int:
        return len(self.task)

    def key(self, record: int) -> str:
        """The key of a record."""
        return self.keys[record].decode()

    def take(self, selection: slice) -> "DocumentIndex":
        """The index of some of the records."""
        names = ("keys", "task", *_COLUMNS)
        columns = {name: getattr(self, name)[selection] for name in names if getattr(self, name) is not None}
        return dataclasses.replace(self, **columns)


def shard_file(split: str, shard: int, shards: int) -> str:
    """The name of a shard of a split."""
    return f"{split}-{shard:05d}-of-{shards:05d}.array_record"


def write_shard(path: pathlib.Path, documents: Iterable[records.EncodedDocument], family: ScheduleFamily) -> None:
    """Writes a shard and, before it gets its name, its part of the index. A shard that is there is complete."""
    keys, tasks, counts = [], [], []

    def write(partial: pathlib.Path) -> None:
        writer = array_record_module.ArrayRecordWriter(str(partial), _WRITER_OPTIONS)
        for document in documents:
            writer.write(records.encode(document))
            keys.append(document.key.encode())
            tasks.append(document.task)
            counts.append(dataclasses.astuple(count_positions(document, family)))
        writer.close()
        columns = dict(zip(_COLUMNS, np.asarray(counts, np.int32).reshape(-1, len(_COLUMNS)).T))
        names = {"keys": np.asarray(keys), "tasks": np.asarray(tasks), "sha256": np.asarray(file_sha256(partial))}
        part = {**names, **columns}
        write_atomically(_index_part(path), lambda name: _save_npz(name, part))

    write_atomically(path, write)


def is_written(path: pathlib.Path) -> bool:
    """Whether `write_shard` finished this shard and its part of the index is still there."""
    return path.is_file() and _index_part(path).is_file()


def finish_shards(
    directory: pathlib.Path, shards: dict[str, Sequence[pathlib.Path]]
) -> dict[str, tuple[ShardEntry, ...]]:
    """Joins the index parts of written shards into index.npz.

    Args:
      directory: of the shards.
      shards: the files of every split, in order.

    Returns:
      The manifest's entries by split.
    """
    entries: dict[str, tuple[ShardEntry, ...]] = {}
    parts = []
    for split, paths in shards.items():
        loaded = [_load_npz(_index_part(path)) for path in paths]
        entries[split] = tuple(_entry(path, part) for path, part in zip(paths, loaded))
        parts.extend(loaded)
    names, task = np.unique(np.concatenate([part["tasks"] for part in parts]), return_inverse=True)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in ("keys", *_COLUMNS)}
    index = {"tasks": names, "task": task.astype(np.int16), **columns}
    write_atomically(directory / INDEX_FILE, lambda name: _save_npz(name, index))
    return entries


def remove_index_parts(shards: dict[str, Sequence[pathlib.Path]]) -> None:
    """Deletes what only `finish_shards` needed, once the manifest is written."""
    for paths in shards.values():
        for path in paths:
            _index_part(path).unlink(missing_ok=True)


class ShardSet:
    """Finished shards, checked against their manifest: the index of every split and its records by number."""

    def __init__(self, directory: pathlib.Path, manifest: Manifest, index: dict[str, DocumentIndex]):
        self.directory = directory
        self.manifest = manifest
        self._index = index

    def index(self, split: str) -> DocumentIndex:
        """The index of a split; UserError when there is none."""
        self.manifest.split(split)
        return self._index[split]

    def source(self, split: str) -> "RecordSource":
        """Reads the documents of a split; UserError when there is none."""
        paths = [f"{self.directory / shard.file}[0:{shard.records}]" for shard in self.manifest.split(split).shards]
        return RecordSource(grain.sources.ArrayRecordDataSource(paths))

    @property
    def tokenizer_path(self) -> pathlib.Path:
        """The bundle with both tokenizers."""
        return self.directory / TOKENIZER_DIRECTORY


class RecordSource:
    """Random access to the documents of a split, safe to share between threads."""

    def __init__(self, source: grain.sources.ArrayRecordDataSource):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, record: int) -> records.EncodedDocument:
        """Document number `record`; BrokenRecord when its bytes are damaged."""
        try:
            data = self._source[record]
        except RuntimeError as error:  # what ArrayRecord raises on a checksum that does not match
            raise records.BrokenRecord(str(error)) from error
        return records.decode(data)


def open_shards(directory: str | pathlib.Path, verify: str = "size") -> ShardSet:
    """Opens finished shards after checking that every file is there and whole.

    Args:
      directory: what `extract --out` wrote.
      verify: "size" compares file sizes with the manifest; "full" also compares SHA-256 checksums, reading everything.

    Raises:
      UserError: no manifest, another schema version, a missing file, or one that differs from the manifest.
    """
    directory = pathlib.Path(directory)
    manifest = read_manifest(directory)
    check = choose("verify", verify, {"size": _check_size, "full": _check_full})
    for split in manifest.splits:
        for shard in split.shards:
            check(directory / shard.file, shard)
    return ShardSet(directory, manifest, _load_index(directory, manifest.splits))


def _load_index(directory: pathlib.Path, splits: Sequence[SplitEntry]) -> dict[str, DocumentIndex]:
    path = directory / INDEX_FILE
    if not path.is_file():
        raise UserError(f"{path} is missing; {directory / FILE_NAME} needs it; {_COPY}")
    try:
        columns = _load_npz(path)
        whole = DocumentIndex(tasks=tuple(columns.pop("tasks").tolist()), **columns)
    except (ValueError, OSError, EOFError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not readable ({error}); {_COPY}") from error
    total = sum(split.records for split in splits)
    if len(whole) != total:
        raise UserError(f"{path} lists {len(whole)} records, the manifest {total}; copy both from the same extraction")
    index, start = {}, 0
    for split in splits:
        index[split.name] = whole.take(slice(start, start + split.records))
        start += split.records
    return index


def _check_size(path: pathlib.Path, shard: ShardEntry) -> None:
    if not path.is_file():
        raise UserError(f"shard {path} is missing; the manifest lists it; {_COPY}")
    if (size := path.stat().st_size) != shard.bytes:
        raise UserError(f"shard {path} has {size} bytes, the manifest says {shard.bytes}; {_COPY}")


def _check_full(path: pathlib.Path, shard: ShardEntry) -> None:
    _check_size(path, shard)
    if (digest := file_sha256(path)) != shard.sha256:
        raise UserError(f"shard {path} is damaged: its SHA-256 is {digest}, the manifest says {shard.sha256}; {_COPY}")


def _index_part(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".index.npz")


def _save_npz(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def _load_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def _entry(path: pathlib.Path, part: dict[str, np.ndarray]) -> ShardEntry:
    return ShardEntry(
        file=path.name,
        records=len(part["plain"]),
        tokens=int(part["plain"].sum()),
        bytes=path.stat().st_size,
        sha256=str(part["sha256"]),
    )

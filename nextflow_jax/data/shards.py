"""Shards on disk: ArrayRecord files of encoded documents, beside their index and a manifest with checksums."""

import hashlib
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence

import grain
from array_record.python import array_record_module

from nextflow_jax.config import choose
from nextflow_jax.data import records
from nextflow_jax.data.atomic_files import file_sha256, write_atomically
from nextflow_jax.data.index import DocumentIndex, IndexPart, join_indices, load_index, read_part, write_index
from nextflow_jax.data.manifest import (
    FILE_NAME,
    Manifest,
    ShardEntry,
    join_manifests,
    read_manifest,
    shard_directories,
)
from nextflow_jax.errors import UserError
from nextflow_jax.scales import ScheduleFamily

TOKENIZER_DIRECTORY = "tokenizer"

_WRITER_OPTIONS = "group_size:1,zstd:3"
"""One record a group: the loader reads at random. zstd takes a third of brotli's time for 1% more bytes."""

ATTEMPTS = 3
"""How often reading a record is tried."""
FIRST_PAUSE = 0.1
"""Seconds before the second attempt; each further pause is twice the one before."""

_COPY = "copy it from the original or extract again"


def shard_file(split: str, shard: int, shards: int) -> str:
    """The name of a shard of a split."""
    return f"{split}-{shard:05d}-of-{shards:05d}.array_record"


def write_shard(path: pathlib.Path, documents: Iterable[records.EncodedDocument], family: ScheduleFamily) -> None:
    """Writes a shard and, before it gets its name, its part of the index. A shard that is there is complete."""
    part = IndexPart(family)

    def write(partial: pathlib.Path) -> None:
        writer = array_record_module.ArrayRecordWriter(str(partial), _WRITER_OPTIONS)
        for document in documents:
            writer.write(records.encode(document))
            part.add(document)
        writer.close()
        part.save(_index_part(path), file_sha256(partial))

    write_atomically(path, write)


def is_written(path: pathlib.Path) -> bool:
    """Whether `write_shard` finished this shard and its part of the index is still there."""
    return path.is_file() and read_part(_index_part(path)) is not None


def finish_shards(
    directory: pathlib.Path, shards: Mapping[str, Sequence[pathlib.Path]]
) -> dict[str, tuple[ShardEntry, ...]]:
    """Joins the index parts of written shards into the index; in memory is one part at a time.

    Args:
      directory: of the shards.
      shards: the files of every split, in order.

    Returns:
      The manifest's entries by split.
    """
    entries = {split: tuple(map(_entry, paths)) for split, paths in shards.items()}
    write_index(directory, [_index_part(path) for paths in shards.values() for path in paths])
    return entries


def remove_index_parts(shards: dict[str, Sequence[pathlib.Path]]) -> None:
    """Deletes what only `finish_shards` needed, once the manifest is written."""
    for paths in shards.values():
        for path in paths:
            _index_part(path).unlink(missing_ok=True)


class ShardSet:
    """Finished shards, checked against their manifests: the index of every split and its records by number.

    Where there are several directories, a split is theirs in turn, and the manifest speaks of all of them.
    """

    def __init__(self, manifests: Mapping[pathlib.Path, Manifest], indices: Mapping[str, Sequence[DocumentIndex]]):
        self.directories = tuple(manifests)
        self.manifest = join_manifests(manifests)
        self._manifests = dict(manifests)
        self._index = {split: join_indices(parts) for split, parts in indices.items()}

    def index(self, split: str) -> DocumentIndex:
        """The index of a split; UserError when there is none."""
        self.manifest.split(split)
        return self._index[split]

    def source(self, split: str) -> "RecordSource":
        """Reads the documents of a split; UserError when there is none."""
        self.manifest.split(split)
        paths = [
            f"{directory / shard.file}[0:{shard.records}]"
            for directory, manifest in self._manifests.items()
            for entry in manifest.splits
            if entry.name == split
            for shard in entry.shards
            if shard.records
        ]
        return RecordSource(paths)

    @property
    def directory(self) -> pathlib.Path:
        """The first directory."""
        return self.directories[0]

    @property
    def tokenizer_path(self) -> pathlib.Path:
        """The bundle with both tokenizers, which all directories agree on."""
        return self.directory / TOKENIZER_DIRECTORY

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest; of those of all directories, in order, where there are several."""
        digests = [file_sha256(directory / FILE_NAME) for directory in self.directories]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


class RecordSource:
    """Random access to the documents of a split, safe to share between threads and to send to worker processes."""

    def __init__(self, paths: Sequence[str]):
        self._paths = tuple(paths)
        self._source = self._open()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, record: int) -> records.EncodedDocument:
        """Document number `record`; BrokenRecord when its bytes are damaged or could not be read in `ATTEMPTS`."""
        return records.decode(self._read(record))

    def _read(self, record: int) -> bytes:
        source, pause = self._source, FIRST_PAUSE
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if data := source[record]:
                    self._source = source
                    return data
                problem = "the file ends before it"
            except (RuntimeError, OSError) as error:  # RuntimeError is what ArrayRecord raises, whatever went wrong
                problem = str(error)
            if attempt < ATTEMPTS:
                time.sleep(pause)
                pause *= 2
                source = self._open()  # a reader of a file that could not be opened once fails forever
        raise records.BrokenRecord(f"not read in {ATTEMPTS} attempts: {problem}")

    def _open(self) -> grain.sources.ArrayRecordDataSource:
        return grain.sources.ArrayRecordDataSource(self._paths)


def open_shards(directories: str | pathlib.Path, verify: str = "size") -> ShardSet:
    """Opens finished shards after checking that every file is there and whole.

    Args:
      directories: what `extract --out` wrote; several, comma-separated, are read one after another.
      verify: "size" compares file sizes with the manifest; "full" also compares SHA-256 checksums, reading everything.

    Raises:
      UserError: no manifest, another schema version, a missing file, one that differs from the manifest, or
        directories that were extracted with different tokenizers or schedules.
    """
    check = choose("verify", verify, {"size": _check_size, "full": _check_full})
    manifests = {directory: read_manifest(directory) for directory in shard_directories(directories)}
    join_manifests(manifests)
    indices: dict[str, list[DocumentIndex]] = {}
    for directory, manifest in manifests.items():
        for shard in (shard for split in manifest.splits for shard in split.shards):
            check(directory / shard.file, shard)
        for split, index in _split_index(directory, manifest, verify == "full").items():
            indices.setdefault(split, []).append(index)
    return ShardSet(manifests, indices)


def _split_index(directory: pathlib.Path, manifest: Manifest, verify: bool) -> dict[str, DocumentIndex]:
    whole = load_index(directory, sum(split.records for split in manifest.splits), verify, manifest.index)
    index, start = {}, 0
    for split in manifest.splits:
        index[split.name] = whole.take(start, start + split.records)
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


def _entry(path: pathlib.Path) -> ShardEntry:
    part = read_part(_index_part(path))
    if part is None:
        raise UserError(f"{_index_part(path)} is missing; extract again, which goes on from the shards that are there")
    return ShardEntry(path.name, part.records, part.tokens, path.stat().st_size, part.sha256)

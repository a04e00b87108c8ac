"""Writing a corpus: parts one by one, in any order and by any process; then the selection and corpus.json.

part-00000-of-00042.array_record    one unit's documents, packed
part-00000-of-00042.index.npz       their fingerprints, the counts of what the unit dropped, the part's checksum
selection.npz                       per split the numbers of the records that are kept, over all parts in order
corpus.json                         last: with it the corpus is finished, and the index parts are removed
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module
from jaxtyping import Int

from nextflow_jax.data.atomic_files import file_sha256, write_atomically
from nextflow_jax.data.corpus.manifest import FILE_NAME, CorpusManifest, PartEntry
from nextflow_jax.data.corpus.raw import Drop, RawDocument, pack
from nextflow_jax.data.filters.columns import Fingerprint, concatenate, to_columns
from nextflow_jax.data.filters.selection import Selection

SELECTION_FILE = "selection.npz"

_WRITER_OPTIONS = "group_size:1,zstd:1"
"""One record a group: extraction reads at random. Pictures are compressed already; it is for the texts."""


@dataclasses.dataclass(frozen=True)
class PartCounts:
    """What became of a unit's documents."""

    source: str
    read: int
    written: int
    dropped: dict[str, int]
    """By reason."""


def part_file(part: int, parts: int) -> str:
    """The name of a part."""
    return f"part-{part:05d}-of-{parts:05d}.array_record"


def write_part(
    path: pathlib.Path, source: str, documents: Iterable[tuple[RawDocument, Fingerprint] | Drop]
) -> PartCounts:
    """Writes a part and, before it gets its name, its index. A part that is there is complete."""
    fingerprints: list[Fingerprint] = []
    dropped: collections.Counter[str] = collections.Counter()

    def write(partial: pathlib.Path) -> None:
        writer = array_record_module.ArrayRecordWriter(str(partial), _WRITER_OPTIONS)
        for document in documents:
            if isinstance(document, Drop):
                dropped[document.reason] += 1
            else:
                writer.write(pack(document[0]))
                fingerprints.append(document[1])
        writer.close()
        counts = PartCounts(source, len(fingerprints) + dropped.total(), len(fingerprints), dict(dropped))
        arrays = {**to_columns(fingerprints), "counts": _as_json(dataclasses.asdict(counts))}
        arrays["sha256"] = np.asarray(file_sha256(partial))
        write_atomically(_index_part(path), lambda name: _save_npz(name, arrays))

    write_atomically(path, write)
    return read_counts(path)


def is_written(path: pathlib.Path) -> bool:
    """Whether `write_part` finished this part and its index is still there."""
    return path.is_file() and _index_part(path).is_file()


def read_counts(path: pathlib.Path) -> PartCounts:
    """The counts of a written part."""
    with np.load(_index_part(path)) as part:
        return PartCounts(**json.loads(str(part["counts"])))


def load_columns(paths: Sequence[pathlib.Path]) -> dict[str, np.ndarray]:
    """The fingerprint columns of all documents of written parts, in order (see filters/columns.py)."""
    parts = []
    for path in paths:
        with np.load(_index_part(path)) as part:
            parts.append({name: part[name] for name in part.files})
    columns = concatenate(parts)
    return {field.name: getattr(columns, field.name) for field in dataclasses.fields(columns)}


def finish_corpus(
    directory: pathlib.Path,
    paths: Sequence[pathlib.Path],
    selection: Selection,
    splits: Mapping[str, Int[np.ndarray, "_"]],
    made_from: dict[str, Any],
) -> CorpusManifest:
    """Writes the selection and corpus.json, then removes what only an unfinished corpus needs.

    Args:
      directory: of the parts.
      paths: all parts in order.
      selection: of their documents.
      splits: per split the numbers of its records, growing.
      made_from: see CorpusManifest.
    """
    counts = [read_counts(path) for path in paths]
    write_atomically(directory / SELECTION_FILE, lambda name: _save_npz(name, dict(splits)))
    selection_sha256 = file_sha256(directory / SELECTION_FILE)
    parts = tuple(_entry(path, one) for path, one in zip(paths, counts))
    digest = hashlib.sha256("".join([*(part.sha256 for part in parts), selection_sha256]).encode())
    manifest = CorpusManifest(
        parts=parts,
        splits={name: len(records) for name, records in splits.items()},
        read=_sum_by_source(counts),
        dropped={**_drops_by_source(counts), **({"*": selection.dropped} if selection.dropped else {})},
        selection_sha256=selection_sha256,
        fingerprint=digest.hexdigest(),
        made_from=made_from,
    )
    text = manifest.to_json()
    write_atomically(directory / FILE_NAME, lambda path: path.write_text(text, encoding="utf-8"))
    remove_index_parts(paths)
    return manifest


def remove_index_parts(paths: Sequence[pathlib.Path]) -> None:
    """Deletes what only `finish_corpus` needed; a killed run may have left it."""
    for path in paths:
        _index_part(path).unlink(missing_ok=True)


def _sum_by_source(counts: Sequence[PartCounts]) -> dict[str, int]:
    read: collections.Counter[str] = collections.Counter()
    for one in counts:
        read[one.source] += one.read
    return dict(read)


def _drops_by_source(counts: Sequence[PartCounts]) -> dict[str, dict[str, int]]:
    dropped: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for one in counts:
        dropped[one.source].update(one.dropped)
    return {source: dict(sorted(reasons.items())) for source, reasons in dropped.items() if reasons}


def _entry(path: pathlib.Path, counts: PartCounts) -> PartEntry:
    with np.load(_index_part(path)) as part:
        return PartEntry(path.name, counts.written, path.stat().st_size, str(part["sha256"]))


def _index_part(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".index.npz")


def _as_json(values: dict[str, Any]) -> np.ndarray:
    return np.asarray(json.dumps(values, sort_keys=True))


def _save_npz(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)

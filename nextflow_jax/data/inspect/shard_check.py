"""Shards: every record read and compared with the index, every file with the manifest; counts of what they hold."""

import bisect
import collections
import itertools
import pathlib
from collections.abc import Iterator

import numpy as np
import tqdm

from nextflow_jax.data.atomic_files import file_sha256
from nextflow_jax.data.index import DocumentIndex, load_index
from nextflow_jax.data.inspect.findings import (
    Broken,
    Findings,
    Table,
    count_table,
    histogram,
    quantile_table,
    spread,
)
from nextflow_jax.data.manifest import Manifest, SplitEntry
from nextflow_jax.data.records import BrokenRecord, EncodedDocument, EncodedImage, EncodedText
from nextflow_jax.data.segments import check_indices, count_positions
from nextflow_jax.data.shards import ShardSet, open_shards


def check_shards(directory: pathlib.Path, max_records: int | None = None) -> Findings:
    """Reads finished shards.

    Args:
      directory: what `extract --out` wrote.
      max_records: read only so many records, evenly spread, and leave checksums of files out; None: everything.

    Raises:
      UserError: no manifest, a missing or truncated file, an unusable index: nothing can be compared then.
    """
    shards = open_shards(directory)
    manifest = shards.manifest
    total = sum(split.records for split in manifest.splits)
    broken: list[Broken] = []
    if max_records is None:
        load_index(directory, total, verify=True)
        broken += _damaged_files(directory, manifest)
    counts = _Counts(manifest)
    checked = 0
    with tqdm.tqdm(total=min(total, max_records or total), disable=None, unit="record") as progress:
        for split in manifest.splits:
            share = split.records if max_records is None else -(-max_records * split.records // total)
            index, source = shards.index(split.name), shards.source(split.name)
            for record in map(int, spread(split.records, share)):
                try:
                    document = source[record]
                    check_record(document, index, record, manifest)
                    counts.add(split.name, document)
                except BrokenRecord as error:
                    broken.append(Broken(_key(index, record), _place(split, record), str(error)))
                checked += 1
                progress.update()
    return Findings((*_index_tables(shards), *counts.tables()), tuple(broken), checked, total)


def check_record(document: EncodedDocument, index: DocumentIndex, record: int, manifest: Manifest) -> None:
    """Compares a document with what the index and the manifest say of it.

    Raises:
      BrokenRecord: another key, task or source than the index has, indices outside the vocabulary, pictures that the
        schedules do not know, or other lengths or visible pairs.
    """
    wanted = {"key": _key(index, record), "task": _label(index, "task", record)}
    wanted |= {"source": _label(index, "source", record)}
    for name, value in wanted.items():
        if getattr(document, name) != value:
            raise BrokenRecord(f"{name} {getattr(document, name)!r}, the index says {value!r}")
    check_indices(document, manifest.vocabulary)
    counts = count_positions(document, manifest.schedule_family)
    for name, column in index.columns().items():
        counted = getattr(counts, name, column[record])
        if counted != column[record]:
            raise BrokenRecord(f"{name} is {counted}, the index says {column[record]}")


class _Counts:
    """Adds up what the documents hold."""

    def __init__(self, manifest: Manifest) -> None:
        self._family = manifest.schedule_family
        self._documents: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self._licences: collections.Counter[str] = collections.Counter()
        self._text: dict[str, collections.Counter[int]] = {}
        self._codes: dict[str, collections.Counter[int]] = {}
        scales = self._family.max_scales
        self._used = np.zeros((scales, manifest.codebook_size), np.int64)
        self._corrected = np.zeros(scales, np.int64)
        self._pictures = self._corrected_pictures = self._silent = 0

    def add(self, split: str, document: EncodedDocument) -> None:
        """Counts a checked document."""
        self._documents[split, document.task, document.source] += 1
        self._licences[document.licence] += 1
        tokens = sum(len(segment.ids) for segment in document.segments if isinstance(segment, EncodedText))
        self._text.setdefault(document.task, collections.Counter())[tokens] += 1
        codes = self._codes.setdefault(document.task, collections.Counter())
        for segment in document.segments:
            self._silent += not segment.loss
            if isinstance(segment, EncodedImage):
                self._add_picture(segment, codes)

    def _add_picture(self, image: EncodedImage, codes: collections.Counter[int]) -> None:
        schedule = self._family.schedule(image.size)
        differs = image.inputs != image.targets
        self._pictures += 1
        self._corrected_pictures += bool(differs.any())
        for scale in range(schedule.num_scales):
            part = schedule.slice(scale)
            codes[scale] += schedule.counts[scale]
            self._corrected[scale] += int(differs[part].sum())
            np.add.at(self._used[scale], image.targets[part], 1)

    def tables(self) -> Iterator[Table]:
        """Of all that was added."""
        documents = {labels: [count] for labels, count in self._documents.items()}
        yield count_table("Documents", ("split", "task", "source", "records"), documents)
        licences = {(licence or "(none)",): [count] for licence, count in self._licences.items()}
        yield count_table("Licences", ("licence", "records"), licences)
        yield histogram("Text tokens of a document", "text tokens", self._text)
        if not self._pictures:
            return
        yield self._scales()
        corrected = f"{self._corrected_pictures / self._pictures:.1%}"
        share = f"{self._corrected.sum() / self._used.sum():.1%}"
        rows = (
            ("pictures", f"{self._pictures:,}"),
            ("pictures of which inputs differ from targets (self-correction)", corrected),
            ("codes of which inputs differ", share),
            ("segments without loss", f"{self._silent:,}"),
        )
        yield Table("Pictures", ("", "value"), rows)

    def _scales(self) -> Table:
        rows = []
        for scale, used in enumerate(self._used):
            total = int(used.sum())
            if not total:
                continue
            share = used[used > 0] / total
            rows.append(
                (
                    f"{scale + 1}",
                    f"{total:,}",
                    *(f"{codes[scale]:,}" for codes in self._codes.values()),
                    f"{np.count_nonzero(used):,}",
                    f"{2 ** float(-(share * np.log2(share)).sum()):,.1f}",
                    f"{self._corrected[scale] / total:.1%}",
                )
            )
        header = ("scale", "codes", *self._codes, "different", "perplexity", "inputs differ")
        return Table("Codes of each scale", header, tuple(rows))


def _index_tables(shards: ShardSet) -> Iterator[Table]:
    """What needs no record: sizes from the manifest, lengths from the index."""
    rows = []
    for split in shards.manifest.splits:
        size, tokens = (sum(getattr(shard, name) for shard in split.shards) for name in ("bytes", "tokens"))
        numbers = (len(split.shards), split.records, split.documents, split.draws, split.pictures, tokens, size)
        rows.append((split.name, *(f"{number:,}" for number in numbers), f"{size / max(1, tokens):.2f}"))
    header = ("split", "shards", "records", "documents", "draws", "pictures", "tokens", "bytes", "bytes a token")
    yield Table("Splits", header, tuple(rows))
    lengths = {}
    for split in shards.manifest.splits:
        index = shards.index(split.name)
        for number, task in enumerate(index.tasks):
            lengths[f"{split.name} {task}"] = index.plain[index.task == number]
    yield quantile_table("Positions of a document", "split and task", "records", lengths, with_sum=True)


def _damaged_files(directory: pathlib.Path, manifest: Manifest) -> Iterator[Broken]:
    for shard in (shard for split in manifest.splits for shard in split.shards):
        if (digest := file_sha256(directory / shard.file)) != shard.sha256:
            yield Broken(shard.file, "file", f"its SHA-256 is {digest}, the manifest says {shard.sha256}")


def _place(split: SplitEntry, record: int) -> str:
    """Where a record of a split lies."""
    ends = list(itertools.accumulate(shard.records for shard in split.shards))
    shard = bisect.bisect_right(ends, record)
    return f"{split.name}, record {record - (ends[shard - 1] if shard else 0)} of {split.shards[shard].file}"


def _key(index: DocumentIndex, record: int) -> str:
    try:
        return index.key(record)
    except UnicodeDecodeError:
        return f"record {record}"


def _label(index: DocumentIndex, column: str, record: int) -> str:
    """The name of a record's task or source; a description of the number when it names none."""
    names, number = getattr(index, f"{column}s"), int(getattr(index, column)[record])
    return names[number] if 0 <= number < len(names) else f"number {number} of {len(names)}"

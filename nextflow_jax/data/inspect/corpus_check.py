"""Corpora: every document read, every picture decoded, every part compared with its checksum; counts by reason."""

import collections
import concurrent.futures
import dataclasses
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import tqdm

from nextflow_jax.data import image_files
from nextflow_jax.data.atomic_files import file_sha256
from nextflow_jax.data.corpus.manifest import CorpusManifest
from nextflow_jax.data.corpus.raw import RawDocument, RawImage, RawText, RefusedDocument, checked
from nextflow_jax.data.corpus.reader import Corpus, CorpusSource, open_corpus
from nextflow_jax.data.corpus.reasons import REASONS
from nextflow_jax.data.inspect.findings import (
    Broken,
    Findings,
    Table,
    count_table,
    histogram,
    quantile_table,
    spread,
)
from nextflow_jax.data.records import BrokenRecord

LIMITS = image_files.ImageLimits(min_side=1)
"""What may be small was the ingest's choice."""

_AT_ONCE = 256
"""Documents whose pictures are in memory together."""


def check_corpus(directory: pathlib.Path, max_records: int | None = None) -> Findings:
    """Reads a finished corpus.

    Args:
      directory: what `nextflow_jax.data.ingest --out` wrote.
      max_records: read only so many documents, evenly spread, and leave checksums of parts out; None: everything.

    Raises:
      UserError: no manifest, a missing or truncated part, another selection.
    """
    corpus = open_corpus(directory)
    total = sum(corpus.manifest.splits.values())
    broken = list(_damaged_parts(corpus)) if max_records is None else []
    counts = _Counts()
    checked = 0
    with (
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm.tqdm(total=min(total, max_records or total), disable=None, unit="document") as progress,
    ):
        for split in corpus.splits:
            source = corpus.source(split)
            share = len(source) if max_records is None else -(-max_records * len(source) // total)
            numbers = spread(len(source), share)
            for chosen in np.split(numbers, range(_AT_ONCE, len(numbers), _AT_ONCE)):
                examined = pool.map(lambda number, source=source: _examine(source, number), chosen.tolist())
                for number, (document, key, reason) in zip(chosen.tolist(), examined):
                    if document is None:
                        broken.append(Broken(key, f"{split}, document {number}", reason))
                    else:
                        counts.add(split, document)
                checked += len(chosen)
                progress.update(len(chosen))
    return Findings((*_manifest_tables(corpus.manifest), *counts.tables()), tuple(broken), checked, total)


@dataclasses.dataclass(frozen=True)
class _Examined:
    """What is counted of a document, without its pictures' bytes."""

    task: str
    source: str
    licence: str
    label: str
    characters: int
    sizes: tuple[image_files.Size, ...]
    bytes: int


def _examine(source: CorpusSource, number: int) -> tuple[_Examined | None, str, str]:
    """(what is counted, key, ""), or (None, key, what is wrong)."""
    try:
        document = source[number]
    except BrokenRecord as error:
        return None, f"document {number}", str(error)
    try:
        check_document(document)
    except BrokenRecord as error:
        return None, document.key, str(error)
    pictures = [segment for segment in document.segments if isinstance(segment, RawImage)]
    characters = sum(len(segment.text) for segment in document.segments if isinstance(segment, RawText))
    names = (document.task, document.source, document.licence, document.label)
    sizes = tuple(picture.size for picture in pictures)
    return _Examined(*names, characters, sizes, sum(len(picture.data) for picture in pictures)), document.key, ""


def check_document(document: RawDocument) -> None:
    """Decodes every picture.

    Raises:
      BrokenRecord: a picture that cannot be decoded or is of another size than the record says, or a document that
        extraction would refuse.
    """
    try:
        checked(document)
        for number, segment in enumerate(document.segments):
            if not isinstance(segment, RawImage):
                continue
            if (size := image_files.read_size(segment.data, LIMITS)) != segment.size:
                raise BrokenRecord(f"segment {number} is a picture of {size}, the record says {segment.size}")
            image_files.read_image(segment.data, size, "#ffffff", LIMITS)
    except (RefusedDocument, image_files.RefusedImage) as error:
        raise BrokenRecord(str(error)) from error


class _Counts:
    """Adds up what the documents hold."""

    def __init__(self) -> None:
        self._documents: dict[tuple[str, ...], np.ndarray] = collections.defaultdict(lambda: np.zeros(4, np.int64))
        self._labels: collections.Counter[str] = collections.Counter()
        self._text: dict[str, collections.Counter[int]] = {}
        self._sizes: collections.Counter[image_files.Size] = collections.Counter()

    def add(self, split: str, document: _Examined) -> None:
        """Counts a document that is whole."""
        labels = (split, document.task, document.source, document.licence)
        self._documents[labels] += (1, len(document.sizes), document.characters, document.bytes)
        self._labels[document.label] += 1
        self._text.setdefault(document.task, collections.Counter())[document.characters] += 1
        self._sizes.update(document.sizes)

    def tables(self) -> Iterator[Table]:
        """Of all that was added."""
        header = ("split", "task", "source", "licence", "documents", "pictures", "characters", "picture bytes")
        yield count_table("Documents", header, {labels: row.tolist() for labels, row in self._documents.items()})
        sizes = np.asarray([*self._sizes], np.int32).reshape(-1, 2)
        sizes = np.repeat(sizes, np.asarray([*self._sizes.values()], np.int64), axis=0)
        sides = {"shorter side": sizes.min(axis=1), "longer side": sizes.max(axis=1)}
        yield quantile_table("Pictures", "pixels", "pictures", sides, with_sum=False)
        yield histogram("Characters of a document", "characters", self._text)
        if set(self._labels) - {""}:
            most = tuple((label or "(none)", f"{count:,}") for label, count in self._labels.most_common(20))
            yield Table(f"Labels: the most frequent of {len(self._labels):,}", ("label", "documents"), most)


def _manifest_tables(manifest: CorpusManifest) -> Iterator[Table]:
    splits = {(split,): [count] for split, count in manifest.splits.items()}
    yield count_table("Kept documents", ("split", "documents"), splits)
    read = {(source,): [count] for source, count in manifest.read.items()}
    yield count_table("Documents read", ("source", "documents"), read)
    dropped = {
        ("all sources" if source == "*" else source, reason, f"its document {REASONS.get(reason, '')}"): [count]
        for source, reasons in manifest.dropped.items()
        for reason, count in reasons.items()
    }
    if dropped:
        yield count_table("Dropped documents", ("source", "reason", "meaning", "documents"), dropped)


def _damaged_parts(corpus: Corpus) -> Iterator[Broken]:
    for part in corpus.manifest.parts:
        if (digest := file_sha256(corpus.directory / part.file)) != part.sha256:
            yield Broken(part.file, "file", f"its SHA-256 is {digest}, the manifest says {part.sha256}")

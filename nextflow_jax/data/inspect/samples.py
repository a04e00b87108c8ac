"""The page of an inspection: its tables, and samples of the documents with their pictures."""

import collections
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8

from nextflow_jax.bundle import Bundle, is_bundle, load_bundle
from nextflow_jax.data import image_files
from nextflow_jax.data.corpus.raw import RawDocument, RawImage
from nextflow_jax.data.corpus.reader import open_corpus
from nextflow_jax.data.index import DocumentIndex
from nextflow_jax.data.inspect.corpus_check import LIMITS, check_document
from nextflow_jax.data.inspect.findings import Findings, spread
from nextflow_jax.data.inspect.shard_check import check_record
from nextflow_jax.data.records import BrokenRecord, EncodedDocument, EncodedImage
from nextflow_jax.data.shards import open_shards
from nextflow_jax.errors import UserError
from nextflow_jax.report import page
from nextflow_jax.report.pictures import card, gallery, picture, strip

SHOWN_PIXELS = 192
"""Longer side of a corpus' picture on the page."""
_SHOWN_CHARACTERS = 600
_LISTED = 1000
"""Broken records named on the page; the command prints all."""

Codes = tuple[tuple[int, int], bytes]
"""Size and int32 codes of a picture."""


def make_page(directory: pathlib.Path, findings: Findings, samples: Sequence[tuple[str, str]]) -> str:
    """The page as HTML that loads nothing from anywhere.

    Args:
      directory: that was inspected.
      findings: in it.
      samples: (heading, HTML) of `shard_samples` or `corpus_samples`.
    """
    lead = f"{findings.checked:,} of {findings.records:,} records read, {len(findings.broken):,} broken."
    broken = "".join(map(page.paragraph, map(str, findings.broken[:_LISTED])))
    if len(findings.broken) > _LISTED:
        broken += page.paragraph(f"... and {len(findings.broken) - _LISTED:,} more")
    tables = [(table.title, page.table(table.header, table.rows)) for table in findings.tables]
    return page.document(f"Inspection of {directory}", lead, [("Broken", broken), *tables, *samples])


def shard_samples(directory: pathlib.Path, count: int) -> list[tuple[str, str]]:
    """Documents of every split and task, their pictures decoded by the bundle beside the shards.

    Where self-correction made the inputs differ from the targets, both are shown, in this order.

    Raises:
      UserError: there is no bundle, or it has no text tokenizer.
    """
    shards = open_shards(directory)
    if not is_bundle(shards.tokenizer_path):
        raise UserError(f"{shards.tokenizer_path}: no bundle, which --html decodes samples with; leave --html out")
    bundle = load_bundle(shards.tokenizer_path)
    if bundle.text_tokenizer is None:
        raise UserError(f"{shards.tokenizer_path}: has no text tokenizer; leave --html out")
    chosen: list[tuple[str, EncodedDocument]] = []
    for split in shards.manifest.splits:
        index, source = shards.index(split.name), shards.source(split.name)
        for record in _of_every_task(index, count // len(shards.manifest.splits)):
            try:
                document = source[record]
                check_record(document, index, record, shards.manifest)
            except BrokenRecord:
                continue
            chosen.append((split.name, document))
    decoded = _decode(bundle, [document for _, document in chosen])
    cards: dict[str, list[str]] = collections.defaultdict(list)
    for split, document in chosen:
        cards[f"Samples: {split}, {document.task}"].append(_shard_card(document, bundle, decoded))
    return [(heading, gallery(made)) for heading, made in cards.items()]


def corpus_samples(directory: pathlib.Path, count: int) -> list[tuple[str, str]]:
    """Documents of every split, evenly spread, with their pictures as they came."""
    corpus = open_corpus(directory)
    sections = []
    for split in corpus.splits:
        source, cards = corpus.source(split), []
        for number in spread(len(source), -(-count // len(corpus.splits))).tolist():
            try:
                document = source[number]
                check_document(document)
            except BrokenRecord:
                continue
            cards.append(_raw_card(document))
        sections.append((f"Samples: {split}", gallery(cards)))
    return sections


def _of_every_task(index: DocumentIndex, count: int) -> list[int]:
    """Records of a split: equally many of each task that it has, at least one, evenly spread."""
    present = np.unique(index.task)
    share = max(1, count // len(present)) if len(present) else 0
    chosen = (np.flatnonzero(index.task == task) for task in present)
    return [int(record) for records in chosen for record in records[spread(len(records), share)]]


def _decode(bundle: Bundle, documents: Sequence[EncodedDocument]) -> dict[Codes, UInt8[np.ndarray, "H W 3"]]:
    """Every picture of the documents, inputs and targets, each once; those of one size together."""
    images = [segment for each in documents for segment in each.segments if isinstance(segment, EncodedImage)]
    by_size: dict[tuple[int, int], dict[bytes, Int[np.ndarray, "N"]]] = collections.defaultdict(dict)
    for image in images:
        for codes in (image.inputs, image.targets):
            by_size[image.size][codes.tobytes()] = codes
    decoded = {}
    for size, codes in by_size.items():
        pictures = bundle.codec.decode(np.stack(list(codes.values())), size)
        decoded |= {(size, name): picture for name, picture in zip(codes, pictures)}
    return decoded


def _shard_card(document: EncodedDocument, bundle: Bundle, decoded: dict[Codes, UInt8[np.ndarray, "H W 3"]]) -> str:
    parts, notes = [], []
    for number, segment in enumerate(document.segments, start=1):
        if isinstance(segment, EncodedImage):
            names = dict.fromkeys([segment.inputs.tobytes(), segment.targets.tobytes()])
            kinds = ("inputs", "targets") if len(names) > 1 else ("codes",)
            shown = [picture(decoded[segment.size, name], f"{kind} of {number}") for kind, name in zip(kinds, names)]
            parts.append(strip(shown))
            notes.append(f"{number}: {segment.role}, {'x'.join(map(str, segment.size))}, {' | '.join(kinds)}")
        else:
            parts.append(_words(bundle.text_tokenizer.decode(segment.ids.tolist())))
            notes.append(f"{number}: {segment.role}, {len(segment.ids)} tokens")
        notes[-1] += "" if segment.loss else ", no loss"
    return card(parts, "\n".join([document.key, *_origin(document), *notes]))


def _raw_card(document: RawDocument) -> str:
    parts, notes = [], []
    for number, segment in enumerate(document.segments, start=1):
        if isinstance(segment, RawImage):
            zoom = min(1.0, SHOWN_PIXELS / max(segment.size))
            size = tuple(max(1, round(side * zoom)) for side in segment.size)
            shown = image_files.read_image(segment.data, size, "#ffffff", LIMITS)
            parts.append(picture(shown, f"picture {number}", shown_width=size[1]))
            notes.append(f"{number}: {segment.role}, {'x'.join(map(str, segment.size))}, {len(segment.data):,} bytes")
        else:
            parts.append(_words(segment.text))
            notes.append(f"{number}: {segment.role}, {len(segment.text)} characters")
        notes[-1] += "" if segment.loss else ", no loss"
    label = [f"label {document.label}"] if document.label else []
    return card(parts, "\n".join([document.key, document.task, *_origin(document), *label, *notes]))


def _origin(document: EncodedDocument | RawDocument) -> list[str]:
    line = ", ".join(filter(None, [document.source, document.licence]))
    return [line] if line else []


def _words(text: str) -> str:
    shown = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
    return page.paragraph(shown)

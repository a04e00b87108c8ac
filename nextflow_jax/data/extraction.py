"""Extraction: documents of text and pictures become shards of indices, once, so that training needs no encoder.

A directory fills up in this order, every file under a hidden name until it is whole:

    extraction.json     what the shards are made from; another run with other inputs is refused
    tokenizer/          bundle of both tokenizers
    *.array_record      one after another, each beside its part of the index
    index/              the parts, joined
    manifest.json       last: with it the directory is finished; what only an unfinished one needs is removed

Which documents a shard holds follows from their number alone, and the randomness of a picture from its key: a run that
goes on after a kill writes the same bytes as one that was never stopped.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nextflow_jax import __version__
from nextflow_jax.bundle import is_bundle, save_bundle
from nextflow_jax.config import Fault, nearest, preflight, to_plain_dict
from nextflow_jax.data import records, shards
from nextflow_jax.data.atomic_files import is_partial, write_atomically
from nextflow_jax.data.documents import TASKS, Document, Image, Text
from nextflow_jax.data.manifest import FILE_NAME, Manifest, SplitEntry, read_manifest
from nextflow_jax.data.picture_codes import PictureEncoder
from nextflow_jax.data.pictures import PictureSet
from nextflow_jax.errors import UserError
from nextflow_jax.scales import ScheduleFamily
from nextflow_jax.text import TextTokenizer, TextTokenizerConfig
from nextflow_jax.vision.codec import VisionTokenizerCodec
from nextflow_jax.vision.quantizer import SelfCorrection

STATE_FILE = "extraction.json"

_LATER = ("max_images", "ladder", "sizes")
"""Settings that earlier versions had not: left out of what the shards are made from while they do nothing."""

Progress = Callable[[int, int], None]
"""Called with (records written or found, records in all)."""


@dataclasses.dataclass(frozen=True)
class ExtractionConfig:
    """What is extracted and how."""

    tasks: tuple[str, ...] = TASKS
    """Kinds of documents to make."""
    draws: int = 4
    """Times each training document is written, with different self-correction draws."""
    self_correction: SelfCorrection = SelfCorrection()
    samples_share: float = 1.0
    """Share of training pictures whose inputs are self-corrected (recipe section 5)."""
    batch_size: int = 32
    """Pictures encoded together."""
    documents_per_shard: int = 4096
    """Bounds a shard's size, and the work that a killed run repeats."""
    max_images: int = 0
    """Pictures of a document at most, e.g. frames: those after it and the words that announce them are cut off
    (recipe section 5); 0 = all stay."""
    ladder: tuple[int, ...] = ()
    """Scales in place of the vision tokenizer's, for another resolution level: its parameters are the same for all."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Picture sizes (height, width) in pixels that go with it."""
    text: TextTokenizerConfig = TextTokenizerConfig()

    def faults(self) -> Iterator[Fault]:
        """The rules this configuration breaks."""
        for name in ("draws", "batch_size", "documents_per_shard"):
            if getattr(self, name) < 1:
                yield Fault(name, getattr(self, name), "must be positive", "use 1 or more")
        if self.max_images < 0:
            yield Fault("max_images", self.max_images, "must not be negative", "use 0 to keep all pictures")
        if bool(self.ladder) != bool(self.sizes):
            rule = "another ladder and its sizes come together"
            yield Fault("sizes", self.sizes, rule, "use both, or neither for the vision tokenizer's own")
        if not 0 <= self.samples_share <= 1:
            yield Fault("samples_share", self.samples_share, "is a share", "use a number from 0 to 1")
        for task in self.tasks:
            if task not in TASKS:
                yield Fault("tasks", task, "is no task", nearest(task, TASKS))
        if self.draws > 1 and 0 in (self.samples_share, self.self_correction.share):
            yield Fault("draws", self.draws, "draws do not differ without self-correction", "use 1")

    def family(self, own: ScheduleFamily) -> ScheduleFamily:
        """The schedules that pictures are encoded with; `own`: those that the vision tokenizer was trained on.

        Raises:
          UserError: sizes that the tokenizer's stride does not divide, or a ladder that does not grow.
        """
        if not self.ladder:
            return own
        family = ScheduleFamily(self.ladder, own.stride, self.sizes)
        preflight(family, prefix="config.extraction")
        return family


@dataclasses.dataclass(frozen=True)
class Extracted:
    """What a run of `extract` did."""

    manifest: Manifest
    finished_before: bool
    """The directory was finished already, from the same inputs; nothing was written."""
    images: int
    """Pictures encoded by this run, each draw counted."""
    seconds: float
    """Time spent encoding them."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Split:
    name: str
    documents: Sequence[Document]
    draws: int
    self_correction: SelfCorrection | None

    def pictures(self) -> dict[str, None]:
        """Keys of the pictures shown, each once, in order."""
        return dict.fromkeys(key for document in self.documents for key in document.image_keys())


def extract(
    config: ExtractionConfig,
    pictures: PictureSet,
    documents: Mapping[str, Sequence[Document]],
    vision_tokenizer: VisionTokenizerCodec,
    text_tokenizer: TextTokenizer,
    out: str | pathlib.Path,
    *,
    seed: int,
    progress: Progress = lambda done, total: None,
) -> Extracted:
    """Writes the documents of every split as shards, with index, manifest and tokenizer bundle.

    Documents of the split "train" are written `config.draws` times with self-correction, all others once without.

    Args:
      config: of the extraction.
      pictures: what the documents show.
      documents: by split; a split without documents is left out.
      vision_tokenizer: makes the picture indices.
      text_tokenizer: makes the text ids.
      out: directory; one that a killed run left is continued.
      seed: of the self-correction draws.
      progress: told after every record.

    Raises:
      UserError: `out` holds something else or shards made from other inputs, there is nothing to train on, or a
        picture's size is none of the tokenizer's.
    """
    if not documents["train"]:
        raise UserError(f"tasks {config.tasks} give no training document of these pictures; choose other tasks")
    out = pathlib.Path(out)
    made_from = _describe_inputs(config, pictures, documents, vision_tokenizer, text_tokenizer, seed)
    finished = _claim(out, made_from)
    splits = [_plan_split(config, name, split) for name, split in documents.items() if split]
    keys = dict.fromkeys(key for split in splits for key in split.pictures())
    encoder = PictureEncoder(pictures, list(keys), vision_tokenizer, config.batch_size, seed)
    files = {split.name: _shard_files(out, split, config.documents_per_shard) for split in splits}
    if not finished:
        if not is_bundle(out / shards.TOKENIZER_DIRECTORY):
            save_bundle(
                out / shards.TOKENIZER_DIRECTORY,
                vision_tokenizer=vision_tokenizer,
                text_tokenizer=text_tokenizer,
                origin={"made_by": "nextflow_jax.extract"},
            )
        _write_shards(config, splits, files, encoder, text_tokenizer, progress)
        _write_manifest(out, splits, files, made_from, vision_tokenizer, text_tokenizer)
    shards.remove_index_parts(files)
    (out / STATE_FILE).unlink(missing_ok=True)
    return Extracted(read_manifest(out), finished, encoder.images, encoder.seconds)


def _plan_split(config: ExtractionConfig, name: str, documents: Sequence[Document]) -> _Split:
    if name != "train":
        return _Split(name, documents, draws=1, self_correction=None)
    corrected = config.self_correction.share > 0 and config.samples_share > 0
    return _Split(name, documents, config.draws, config.self_correction if corrected else None)


def encode_document(
    document: Document,
    key: str,
    text_tokenizer: TextTokenizer,
    encode_picture: Callable[[Image], records.EncodedImage],
) -> records.EncodedDocument:
    """The document with its texts tokenized and its pictures replaced by their indices; `key` names the record."""
    segments: list[records.EncodedSegment] = []
    for segment in document.segments:
        if isinstance(segment, Text):
            ids = np.asarray(text_tokenizer.encode(segment.text), np.int32)
            segments.append(records.EncodedText(ids, segment.role))
        else:
            segments.append(encode_picture(segment))
    return records.EncodedDocument(key, document.task, tuple(segments))


def _describe_inputs(
    config: ExtractionConfig,
    pictures: PictureSet,
    documents: Mapping[str, Sequence[Document]],
    vision_tokenizer: VisionTokenizerCodec,
    text_tokenizer: TextTokenizer,
    seed: int,
) -> dict[str, Any]:
    """All that the shards' bytes depend on, without paths of this machine."""
    picture_config = to_plain_dict(pictures.config)
    del picture_config["root"]
    settings = to_plain_dict(config)
    del settings["text"]["path"]
    for name in _LATER:
        if not settings[name]:
            del settings[name]
    return {
        "version": __version__,
        "seed": seed,
        "config": settings,
        "pictures": {**picture_config, "fingerprint": pictures.fingerprint},
        "documents": {split: _fingerprint(content) for split, content in documents.items()},
        "vision_tokenizer": vision_tokenizer.fingerprint,
        "text_tokenizer": text_tokenizer.fingerprint,
    }


def _fingerprint(documents: Sequence[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps(to_plain_dict(document), sort_keys=True).encode())
    return digest.hexdigest()


def _claim(out: pathlib.Path, made_from: Mapping[str, Any]) -> bool:
    """Makes `out` this extraction's directory, or finds that it is; True when it is finished already."""
    if (out / FILE_NAME).is_file():
        _refuse_other_inputs(out, read_manifest(out).made_from, made_from)
        return True
    state = out / STATE_FILE
    if state.is_file():
        _refuse_other_inputs(out, json.loads(state.read_text(encoding="utf-8")), made_from)
        return False
    if out.exists() and any(not is_partial(path) for path in out.iterdir()):
        raise UserError(f"--out {out} holds files that are no extraction; choose another directory")
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(made_from, indent=1, sort_keys=True)
    write_atomically(state, lambda path: path.write_text(text, encoding="utf-8"))
    return False


def _refuse_other_inputs(out: pathlib.Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    there, here = dict(_leaves(there)), dict(_leaves(here))
    differences = [
        f"{name} was {there.get(name)}, is {here.get(name)}"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
    if differences:
        raise UserError(
            f"--out {out} holds shards made from other inputs ({'; '.join(differences)}); choose another directory"
        )


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _leaves(value, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, tree


def _shard_files(out: pathlib.Path, split: _Split, documents_per_shard: int) -> list[pathlib.Path]:
    count = -(-len(split.documents) // documents_per_shard)
    return [out / shards.shard_file(split.name, shard, count) for shard in range(count)]


def _write_shards(
    config: ExtractionConfig,
    splits: Sequence[_Split],
    files: Mapping[str, Sequence[pathlib.Path]],
    encoder: PictureEncoder,
    text_tokenizer: TextTokenizer,
    progress: Progress,
) -> None:
    """Writes the shards that are not there yet."""
    total = sum(len(split.documents) * split.draws for split in splits)
    done = 0
    for split in splits:
        for shard, path in enumerate(files[split.name]):
            first = shard * config.documents_per_shard
            documents = split.documents[first : first + config.documents_per_shard]
            if not shards.is_written(path):
                encoded = _encode_documents(split, documents, config, encoder, text_tokenizer)
                counted = _count(encoded, done, total, progress)
                shards.write_shard(path, counted, encoder.family)
            done += len(documents) * split.draws
            progress(done, total)


def _encode_documents(
    split: _Split,
    documents: Sequence[Document],
    config: ExtractionConfig,
    encoder: PictureEncoder,
    text_tokenizer: TextTokenizer,
) -> Iterator[records.EncodedDocument]:
    for draw in range(split.draws):
        encode_picture = functools.partial(
            encoder.encode,
            draw=draw,
            self_correction=split.self_correction,
            samples_share=config.samples_share,
        )
        for document in documents:
            yield encode_document(
                document,
                f"{document.key}#{draw}",
                text_tokenizer,
                encode_picture,
            )


def _count(
    encoded: Iterator[records.EncodedDocument], done: int, total: int, progress: Progress
) -> Iterator[records.EncodedDocument]:
    for number, document in enumerate(encoded, start=done + 1):
        yield document
        progress(number, total)


def _write_manifest(
    out: pathlib.Path,
    splits: Sequence[_Split],
    files: Mapping[str, Sequence[pathlib.Path]],
    made_from: dict[str, Any],
    vision_tokenizer: VisionTokenizerCodec,
    text_tokenizer: TextTokenizer,
) -> None:
    entries = shards.finish_shards(out, files)
    manifest = Manifest(
        text_tokenizer=text_tokenizer.fingerprint,
        vision_tokenizer=vision_tokenizer.fingerprint,
        schedule_family=vision_tokenizer.family,
        text_size=text_tokenizer.size,
        codebook_size=len(vision_tokenizer.codebook),
        splits=tuple(
            SplitEntry(split.name, len(split.documents), len(split.pictures()), split.draws, entries[split.name])
            for split in splits
        ),
        made_from=made_from,
    )
    text = manifest.to_json()
    write_atomically(out / FILE_NAME, lambda path: path.write_text(text, encoding="utf-8"))

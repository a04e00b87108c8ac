"""Extraction: documents of text and pictures become shards of indices, once, so that training needs no encoder.

A directory fills up in this order, every file under a hidden name until it is whole:

    extraction.json     what the shards are made from; another run with other inputs is refused
    tokenizer/          bundle of both tokenizers
    *.array_record      one after another, each beside its part of the index and its counts
    index/              the parts, joined
    manifest.json       last: with it the directory is finished; what only an unfinished one needs is removed

Which documents a shard holds follows from their number alone, and the randomness of a picture from its key: a run that
goes on after a kill writes the same bytes as one that was never stopped, and so do several processes together.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from nextflow_jax import __version__
from nextflow_jax.bundle import is_bundle, save_bundle
from nextflow_jax.config import Fault, nearest, preflight, to_plain_dict
from nextflow_jax.data import records, shards
from nextflow_jax.data.atomic_files import remove_partials, write_atomically
from nextflow_jax.data.claim import claim
from nextflow_jax.data.documents import TASKS
from nextflow_jax.data.extraction_source import ExtractionSource, Lost
from nextflow_jax.data.image_files import Size
from nextflow_jax.data.index import digest_of_index
from nextflow_jax.data.manifest import FILE_NAME, Manifest, SplitEntry, read_manifest
from nextflow_jax.data.picture_codes import Draw, PictureCoder, Tally
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
    """Pictures encoded together on each device."""
    documents_per_shard: int = 4096
    """Bounds a shard's size, and the work that a killed run repeats."""
    max_broken_share: float = 0.01
    """Share of the documents that may turn out to be broken; a run with more stops."""
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
        for name in ("samples_share", "max_broken_share"):
            if not 0 <= getattr(self, name) <= 1:
                yield Fault(name, getattr(self, name), "is a share", "use a number from 0 to 1")
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

    manifest: Manifest | None
    """None: other processes still have shards to write."""
    finished_before: bool
    """The directory was finished already, from the same inputs; nothing was written."""
    tallies: Mapping[Size, Tally]
    """Pictures encoded by this run, by height and width."""
    waiting_for: int = 0
    """Shards of other processes that are not there yet."""


@dataclasses.dataclass(frozen=True)
class _Split:
    name: str
    documents: int
    draws: tuple[Draw, ...]
    paths: tuple[pathlib.Path, ...]
    per_shard: int

    def shard_range(self, shard: int) -> tuple[int, int]:
        """The first document of a shard and the one after its last."""
        return shard * self.per_shard, min(self.documents, (shard + 1) * self.per_shard)


def extract(
    config: ExtractionConfig,
    source: ExtractionSource,
    vision_tokenizer: VisionTokenizerCodec,
    text_tokenizer: TextTokenizer,
    out: str | pathlib.Path,
    *,
    seed: int,
    process: int = 0,
    processes: int = 1,
    progress: Progress = lambda done, total: None,
) -> Extracted:
    """Writes the documents of every split as shards, with index, manifest and tokenizer bundle.

    Documents of the split "train" are written `config.draws` times with self-correction, all others once without.

    Args:
      config: of the extraction.
      source: of the documents.
      vision_tokenizer: makes the picture indices.
      text_tokenizer: makes the text ids.
      out: directory; one that a killed run left is continued.
      seed: of the self-correction draws.
      process: number of this process; it writes every shard i with i % `processes` == `process`.
      processes: that share the directory. The one that finds all shards there finishes it.
      progress: told after every record that this process has to write.

    Raises:
      UserError: `out` holds something else or shards made from other inputs, there is nothing to train on, a picture's
        size is none of the tokenizer's, or too many documents are broken. Shards that are written stay.
    """
    if not 0 <= process < processes:
        raise UserError(f"--process {process} of --processes {processes}: processes are numbered from 0")
    if not source.sizes().get("train"):
        raise UserError(f"tasks {config.tasks} give no training document of these pictures; choose other tasks")
    out = pathlib.Path(out)
    made_from = _describe_inputs(config, source, vision_tokenizer, text_tokenizer, seed)
    there = read_manifest(out).made_from if (out / FILE_NAME).is_file() else None
    finished = claim(out, STATE_FILE, made_from, there, "shards")
    splits = plan_splits(config, source.sizes(), out)
    coder = PictureCoder(vision_tokenizer, seed)
    if not finished:
        bundle = out / shards.TOKENIZER_DIRECTORY
        if process == 0 and not is_bundle(bundle):
            origin = {"made_by": "nextflow_jax.extract"}
            save_bundle(bundle, vision_tokenizer=vision_tokenizer, text_tokenizer=text_tokenizer, origin=origin)
        writing = _Writing(config, source, coder, tokenize_with(text_tokenizer), progress)
        _write_shards(writing, splits, process, processes)
        missing = sum(not _is_written(path) for split in splits for path in split.paths) + (not is_bundle(bundle))
        if missing:
            return Extracted(None, False, coder.tallies, missing)
        _write_manifest(out, splits, made_from, vision_tokenizer, text_tokenizer)
    _clean_up(out, splits)
    return Extracted(read_manifest(out), finished, coder.tallies)


def plan_splits(config: ExtractionConfig, sizes: Mapping[str, int], out: pathlib.Path) -> list[_Split]:
    """Which documents are written how often into which files of `out`; `sizes`: number of documents by split."""
    return [_plan_split(config, name, documents, out) for name, documents in sizes.items()]


def tokenize_with(text_tokenizer: TextTokenizer) -> Callable[[str], Int[np.ndarray, "tokens"]]:
    """A text to its ids without specials."""
    return lambda text: np.asarray(text_tokenizer.encode(text), np.int32)


def _plan_split(config: ExtractionConfig, name: str, documents: int, out: pathlib.Path) -> _Split:
    draws: tuple[Draw, ...] = (Draw(),)
    if name == "train":
        corrected = config.self_correction.share > 0 and config.samples_share > 0
        correction = config.self_correction if corrected else None
        draws = tuple(Draw(number, correction, config.samples_share) for number in range(config.draws))
    count = -(-documents // config.documents_per_shard)
    paths = tuple(out / shards.shard_file(name, shard, count) for shard in range(count))
    return _Split(name, documents, draws, paths, config.documents_per_shard)


def _describe_inputs(
    config: ExtractionConfig,
    source: ExtractionSource,
    vision_tokenizer: VisionTokenizerCodec,
    text_tokenizer: TextTokenizer,
    seed: int,
) -> dict[str, Any]:
    """All that the shards' bytes depend on, without paths of this machine."""
    settings = to_plain_dict(config)
    del settings["text"]["path"], settings["max_broken_share"]
    for name in _LATER:
        if not settings[name]:
            del settings[name]
    return {
        "version": __version__,
        "seed": seed,
        "config": settings,
        **source.describe(),
        "vision_tokenizer": vision_tokenizer.fingerprint,
        "text_tokenizer": text_tokenizer.fingerprint,
    }


@dataclasses.dataclass(eq=False)
class _Writing:
    """What writing a shard needs, and what this process has lost so far."""

    config: ExtractionConfig
    source: ExtractionSource
    coder: PictureCoder
    tokenize: Callable[[str], Int[np.ndarray, "tokens"]]
    progress: Progress
    broken: int = 0


@dataclasses.dataclass
class ShardCounts:
    """What the manifest says of the documents of a shard."""

    documents: int = 0
    pictures: int = 0
    """Pictures that they show."""
    lost: dict[str, int] = dataclasses.field(default_factory=dict)
    """Documents without a record, by reason."""


def _write_shards(writing: _Writing, splits: Sequence[_Split], process: int, processes: int) -> None:
    """Writes the shards of this process that are not there yet."""
    jobs = [(split, shard) for split in splits for shard in range(len(split.paths))][process::processes]
    sizes = [(stop - start) * len(split.draws) for split, shard in jobs for start, stop in [split.shard_range(shard)]]
    total, done = sum(sizes), 0
    everything = sum(split.documents for split in splits)
    for (split, shard), size in zip(jobs, sizes):
        if not _is_written(split.paths[shard]):
            encoded = _encode_shard(writing, split, shard, everything)
            told = functools.partial(writing.progress, total=total)
            shards.write_shard(split.paths[shard], _count(encoded, done, told), writing.coder.family)
        done += size
        writing.progress(done, total)


def _encode_shard(writing: _Writing, split: _Split, shard: int, everything: int) -> Iterator[records.EncodedDocument]:
    """The records of a shard, draw by draw; its counts are written before it ends, so before the shard has its name."""
    start, stop = split.shard_range(shard)
    counts = ShardCounts()
    for draw in split.draws:
        for document in writing.source.encode(split.name, start, stop, draw, writing.coder, writing.tokenize):
            if isinstance(document, Lost):
                if draw.number == 0:
                    counts.lost[document.reason] = counts.lost.get(document.reason, 0) + 1
                    _count_broken(writing, document, everything)
                continue
            if draw.number == 0:
                counts.documents += 1
                counts.pictures += sum(isinstance(one, records.EncodedImage) for one in document.segments)
            yield document
    text = json.dumps(dataclasses.asdict(counts), sort_keys=True)
    write_atomically(_counts_file(split.paths[shard]), lambda path: path.write_text(text, encoding="utf-8"))


def _count_broken(writing: _Writing, lost: Lost, everything: int) -> None:
    writing.broken += lost.broken
    share = writing.config.max_broken_share
    if writing.broken > share * everything:
        raise UserError(
            f"{writing.broken:,} of {everything:,} documents are broken, the last one {lost.key} ({lost.reason}); "
            f"config.extraction.max_broken_share allows {share}; raise it and run the same command again, which writes "
            "no shard twice, or ingest again"
        )


def _count(
    encoded: Iterator[records.EncodedDocument], done: int, progress: Callable[[int], None]
) -> Iterator[records.EncodedDocument]:
    for number, document in enumerate(encoded, start=done + 1):
        yield document
        progress(number)


def _counts_file(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".counts.json")


def _is_written(path: pathlib.Path) -> bool:
    return shards.is_written(path) and _counts_file(path).is_file()


def _write_manifest(
    out: pathlib.Path,
    splits: Sequence[_Split],
    made_from: dict[str, Any],
    vision_tokenizer: VisionTokenizerCodec,
    text_tokenizer: TextTokenizer,
) -> None:
    entries = shards.finish_shards(out, {split.name: split.paths for split in splits})
    manifest = Manifest(
        text_tokenizer=text_tokenizer.fingerprint,
        vision_tokenizer=vision_tokenizer.fingerprint,
        schedule_family=vision_tokenizer.family,
        text_size=text_tokenizer.size,
        codebook_size=len(vision_tokenizer.codebook),
        splits=tuple(_split_entry(split, entries[split.name]) for split in splits),
        made_from=made_from,
        index=digest_of_index(out),
    )
    text = manifest.to_json()
    write_atomically(out / FILE_NAME, lambda path: path.write_text(text, encoding="utf-8"))


def _split_entry(split: _Split, entries: tuple[shards.ShardEntry, ...]) -> SplitEntry:
    counts = [ShardCounts(**json.loads(_counts_file(path).read_text(encoding="utf-8"))) for path in split.paths]
    lost: dict[str, int] = {}
    for one in counts:
        for reason, number in one.lost.items():
            lost[reason] = lost.get(reason, 0) + number
    documents, pictures = sum(one.documents for one in counts), sum(one.pictures for one in counts)
    return SplitEntry(split.name, documents, pictures, len(split.draws), entries, dict(sorted(lost.items())))


def _clean_up(out: pathlib.Path, splits: Sequence[_Split]) -> None:
    shards.remove_index_parts({split.name: split.paths for split in splits})
    for split in splits:
        for path in split.paths:
            _counts_file(path).unlink(missing_ok=True)
    remove_partials(out)
    (out / STATE_FILE).unlink(missing_ok=True)

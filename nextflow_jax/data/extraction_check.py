"""Checking an extraction: documents of finished shards are extracted once more and compared, bit by bit."""

import math
import pathlib
from collections.abc import Mapping

import numpy as np

from nextflow_jax.data.extraction import ExtractionConfig, plan_splits, tokenize_with
from nextflow_jax.data.extraction_source import ExtractionSource, Lost
from nextflow_jax.data.keys import numpy_generator
from nextflow_jax.data.picture_codes import PictureCoder
from nextflow_jax.data.records import EncodedDocument, EncodedSegment, EncodedText
from nextflow_jax.data.shards import ShardSet, open_shards
from nextflow_jax.errors import UserError
from nextflow_jax.text import TextTokenizer
from nextflow_jax.vision.codec import VisionTokenizerCodec


def check_extraction(
    config: ExtractionConfig,
    source: ExtractionSource,
    vision_tokenizer: VisionTokenizerCodec,
    text_tokenizer: TextTokenizer,
    out: str | pathlib.Path,
    *,
    seed: int,
    documents: int,
) -> int:
    """Extracts a sample of the documents of `out` again, each in one of its draws, and compares.

    Args:
      config, source, vision_tokenizer, text_tokenizer, seed: of the extraction.
      out: finished shards.
      documents: about how many, drawn from all splits by their sizes.

    Returns:
      How many were compared.

    Raises:
      UserError: `out` is no finished extraction or of other documents, or a record differs; names the first.
    """
    shard_set = open_shards(out)
    splits = plan_splits(config, source.sizes(), pathlib.Path(out))
    coder = PictureCoder(vision_tokenizer, seed)
    share = min(1.0, documents / sum(split.documents for split in splits))
    places = [(split, number) for split in splits for number in _sample(seed, split.name, split.documents, share)]
    differing = []
    for split, number in places:
        generator = numpy_generator(seed, "check draw", split.name, number)
        draw = split.draws[int(generator.integers(len(split.draws)))]
        (made,) = source.encode(split.name, number, number + 1, draw, coder, tokenize_with(text_tokenizer))
        key, there = _find(shard_set, split.name, number // config.documents_per_shard, made, draw.number)
        problem = _difference(made, there)
        if problem:
            differing.append(f"{key}: {problem}")
    if differing:
        raise UserError(
            f"{len(differing)} of {len(places)} documents of {out} differ, the first {differing[0]}; they were made by "
            "other tokenizers, documents or programs: extract into another directory and compare"
        )
    return len(places)


def _find(
    shard_set: ShardSet, split: str, shard: int, made: EncodedDocument | Lost, draw: int
) -> tuple[str, EncodedDocument | None]:
    """The key that a record of the document has, and that record, when the shard has one."""
    key = f"{made.key}#{draw}" if isinstance(made, Lost) else made.key
    shards = shard_set.manifest.split(split).shards
    if shard >= len(shards):
        raise UserError(f"split {split} has {len(shards)} shards; these documents need more: they are others")
    start = sum(one.records for one in shards[:shard])
    index, source = shard_set.index(split), shard_set.source(split)
    for record in range(start, start + shards[shard].records):
        if index.key(record) == key:
            return key, source[record]
    return key, None


def _difference(made: EncodedDocument | Lost, there: EncodedDocument | None) -> str:
    if isinstance(made, Lost) or there is None:
        if isinstance(made, Lost) == (there is None):
            return ""
        return "is lost now" if isinstance(made, Lost) else "is not there"
    for name in ("task", "source", "licence"):
        if getattr(made, name) != getattr(there, name):
            return f"{name} was {getattr(there, name)!r}, is {getattr(made, name)!r}"
    if len(made.segments) != len(there.segments):
        return f"had {len(there.segments)} segments, has {len(made.segments)}"
    for number, (ours, theirs) in enumerate(zip(made.segments, there.segments)):
        for name, value in _contents(ours).items():
            if not np.array_equal(value, _contents(theirs).get(name, ())):
                return f"segment {number}, {name} differ"
    return ""


def _contents(segment: EncodedSegment) -> Mapping[str, object]:
    both = {"role": segment.role, "loss": segment.loss}
    if isinstance(segment, EncodedText):
        return {**both, "ids": segment.ids}
    return {**both, "size": segment.size, "inputs": segment.inputs, "targets": segment.targets}


def _sample(seed: int, split: str, size: int, share: float) -> list[int]:
    chosen = numpy_generator(seed, "check", split).choice(size, math.ceil(size * share), replace=False)
    return sorted(chosen.tolist())

"""Documents shaped like those of Table 2's mixture, and shards of them: what the data benchmarks read.

Real in what costs time: a level's 41 picture sizes with their schedules (half of the pictures are square), captions of
about 60 tokens, texts with a lognormal spread around 500, edits with two pictures, interleaved documents and frames
with two to five; tasks by the counts of stage pretrain_512. Codes and text ids are uniform, so they compress less than
real ones; self-correction changed 60% of the codes that the decoder sees. `scale` shortens the texts, for levels whose
pictures are small.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from experiments.nextflow.decoder import AT_512, CODES, QWEN_ROWS
from nextflow_jax.data import shards
from nextflow_jax.data.manifest import FILE_NAME, Manifest, SplitEntry
from nextflow_jax.data.records import EncodedDocument, EncodedImage, EncodedSegment, EncodedText
from nextflow_jax.data.shards import ShardSet
from nextflow_jax.scales import BASE_LADDER, FINAL_GRIDS, LEVEL_STRIDE, ScheduleFamily, level_family, make_schedule

CORRECTED = 0.6
"""Share of the codes that self-correction changes (recipe section 5)."""
TASKS = tuple(task for task, _ in AT_512)
TOY_SCALES = 8
SMALL_TEXT, SMALL_CODES = 1000, 2048
"""Vocabulary that a small decoder trains on in reasonable time."""
SHARD_DOCUMENTS = 1000


@dataclasses.dataclass(frozen=True)
class Shape:
    """What documents are drawn from."""

    family: ScheduleFamily
    text_size: int = QWEN_ROWS
    codes: int = CODES
    scale: float = 1.0
    """Length of texts, as a multiple of those of the 512 level."""


def level_shape(level: int, text_size: int = QWEN_ROWS, codes: int = CODES) -> Shape:
    """Documents of a level of the real recipe."""
    return Shape(level_family(level), text_size, codes)


def toy_shape() -> Shape:
    """Documents a 1/18 as long, whose pictures end at 8 x 8 cells, and few words and codes, for the small decoder."""
    grids = dict.fromkeys(make_schedule(grid).grids[TOY_SCALES - 1] for grid in FINAL_GRIDS)
    sizes = tuple((LEVEL_STRIDE * height, LEVEL_STRIDE * width) for height, width in grids)
    family = ScheduleFamily(BASE_LADDER[:TOY_SCALES], LEVEL_STRIDE, sizes)
    square = (LEVEL_STRIDE * TOY_SCALES, LEVEL_STRIDE * TOY_SCALES)
    shortened = family.schedule(square).num_tokens / level_family(512).schedule((512, 512)).num_tokens
    return Shape(family, SMALL_TEXT, SMALL_CODES, shortened)


def make_document(key: str, task: str, shape: Shape, generator: np.random.Generator) -> EncodedDocument:
    """A random document of a task."""

    def text(median: float, role: str, spread: float = 0.5) -> EncodedSegment:
        count = int(np.clip(generator.lognormal(np.log(median), spread), 4, 4000) * shape.scale)
        return EncodedText(generator.integers(0, shape.text_size, max(1, count)).astype(np.int32), role)

    def picture(role: str) -> EncodedSegment:
        sizes = shape.family.sizes
        square = max(sizes, key=min)
        size = square if generator.random() < 0.5 else sizes[generator.integers(len(sizes))]
        count = shape.family.schedule(size).num_tokens
        targets, drawn = generator.integers(0, shape.codes, (2, count)).astype(np.int32)
        inputs = np.where(generator.random(count) < CORRECTED, drawn, targets)
        return EncodedImage(size, inputs, targets, role)

    if task == "text":
        segments = [text(500, "response", 1.0)]
    elif task == "text_to_image":
        segments = [text(60, "prompt"), picture("response")]
    elif task == "edit":
        segments = [picture("prompt"), text(30, "prompt"), picture("response")]
    else:
        pictures = int(generator.integers(2, 6))
        segments = [one for _ in range(pictures) for one in (text(60, "prompt"), picture("response"))]
    return EncodedDocument(key, task, tuple(segments))


def mixed_documents(count: int, shape: Shape, seed: int) -> list[EncodedDocument]:
    """Documents with the tasks of stage pretrain_512 in proportion, in random order, at least one of each."""
    generator = np.random.default_rng(seed)
    weights = np.asarray([weight for _, weight in AT_512])
    counts = np.maximum(1, np.round(weights / weights.sum() * count).astype(int))
    tasks = generator.permutation(np.repeat(TASKS, counts))
    return [make_document(f"{number:08d}#0", str(task), shape, generator) for number, task in enumerate(tasks)]


def write_shards(directory: pathlib.Path, documents: Sequence[EncodedDocument], shape: Shape) -> ShardSet:
    """Shards of one split, "train", through the project's own writer; opened."""
    directory.mkdir(parents=True)
    parts = [documents[i : i + SHARD_DOCUMENTS] for i in range(0, len(documents), SHARD_DOCUMENTS)]
    files = {"train": [directory / shards.shard_file("train", i, len(parts)) for i in range(len(parts))]}
    for path, part in zip(files["train"], parts):
        shards.write_shard(path, part, shape.family)
    entries = shards.finish_shards(directory, files)
    manifest = Manifest(
        text_tokenizer="none",
        vision_tokenizer="none",
        schedule_family=shape.family,
        text_size=shape.text_size,
        codebook_size=shape.codes,
        splits=(SplitEntry("train", len(documents), 0, 1, entries["train"]),),
        made_from={},
    )
    (directory / FILE_NAME).write_text(manifest.to_json())
    shards.remove_index_parts(files)
    return shards.open_shards(directory)

"""Makes tests/goldens/shards_v1: shards as schema version 1 wrote them, beside what they hold.

The program has written another version since; run this in a checkout of commit a217a8f, from the repository root:

    python tests/goldens/make_shards_v1.py OUT

expected.json lists every split's documents in the order of their records, and the columns of version 1's index.
"""

import dataclasses
import json
import pathlib
import sys

import numpy as np

from nextflow_jax.data import shards
from nextflow_jax.data.manifest import FILE_NAME, Manifest, SplitEntry
from nextflow_jax.data.records import EncodedDocument, EncodedImage, EncodedText
from nextflow_jax.data.segments import count_positions
from nextflow_jax.scales import ScheduleFamily

FAMILY = ScheduleFamily(ladder=(1, 2, 3), stride=4, sizes=((12, 12), (8, 16)))
TEXT_SIZE, CODEBOOK_SIZE = 70_000, 40
"""More text ids than two bytes hold: records of either width."""


def text(rng: np.random.Generator, role: str) -> EncodedText:
    """Up to 11 ids."""
    return EncodedText(rng.integers(0, TEXT_SIZE, rng.integers(1, 12)).astype(np.int32), role)


def image(rng: np.random.Generator, role: str, corrected: bool) -> EncodedImage:
    """A square or a wide picture; `corrected`: its inputs differ from its targets."""
    size = FAMILY.sizes[rng.integers(len(FAMILY.sizes))]
    targets, inputs = rng.integers(0, CODEBOOK_SIZE, (2, FAMILY.schedule(size).num_tokens)).astype(np.int32)
    return EncodedImage(size, inputs if corrected else targets, targets, role)


def documents(rng: np.random.Generator, count: int) -> list[EncodedDocument]:
    """Of four tasks in turn."""
    made = []
    for i in range(count):
        corrected = bool(i % 2)
        task, segments = (
            ("text_to_image", (text(rng, "prompt"), image(rng, "response", corrected))),
            ("image_to_text", (image(rng, "prompt", corrected), text(rng, "response"))),
            ("edit", (image(rng, "prompt", False), text(rng, "prompt"), image(rng, "response", True))),
            ("text", (text(rng, "response"),)),
        )[i % 4]
        made.append(EncodedDocument(f"d{i}#0", task, segments))
    return made


def plain(document: EncodedDocument) -> dict:
    """The document as JSON has it, with version 1's columns of the index."""
    segments = []
    for segment in document.segments:
        fields = {name: np.asarray(value).tolist() for name, value in vars(segment).items()}
        segments.append(fields)
    counts = dataclasses.asdict(count_positions(document, FAMILY))
    return {"key": document.key, "task": document.task, "segments": segments, "counts": counts}


def main(out: pathlib.Path) -> None:
    """Writes the directory."""
    out.mkdir(parents=True)
    rng = np.random.default_rng(0)
    splits = {"train": documents(rng, 10), "validation": documents(rng, 4)}
    files = {}
    for split, content in splits.items():
        count = -(-len(content) // 6)
        files[split] = [out / shards.shard_file(split, i, count) for i in range(count)]
        for i, path in enumerate(files[split]):
            shards.write_shard(path, content[6 * i : 6 * i + 6], FAMILY)
    entries = shards.finish_shards(out, files)
    manifest = Manifest(
        text_tokenizer="text-a",
        vision_tokenizer="vision-a",
        schedule_family=FAMILY,
        text_size=TEXT_SIZE,
        codebook_size=CODEBOOK_SIZE,
        splits=tuple(SplitEntry(name, len(content), 0, 1, entries[name]) for name, content in splits.items()),
        made_from={},
    )
    (out / FILE_NAME).write_text(manifest.to_json())
    shards.remove_index_parts(files)
    expected = {name: [plain(document) for document in content] for name, content in splits.items()}
    (out / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

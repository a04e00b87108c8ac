"""Random documents and small shards for the tests of this room."""

import dataclasses
import pathlib

import numpy as np
import pytest

from nextflow_jax.data import shards
from nextflow_jax.data.manifest import FILE_NAME, Manifest, SplitEntry
from nextflow_jax.data.records import EncodedDocument, EncodedImage, EncodedText, encode
from nextflow_jax.scales import ScheduleFamily

FAMILY = ScheduleFamily(ladder=(1, 2, 3), stride=4, sizes=((12, 12), (8, 16)))
"""14 codes (1x1 2x2 3x3) for the square picture, 12 (1x1 1x3 2x4) for the wide one."""
TEXT_SIZE, CODEBOOK_SIZE = 300, 40


@dataclasses.dataclass(frozen=True)
class Samples:
    """Makes documents and shards."""

    family: ScheduleFamily = FAMILY

    def text(self, rng, role, most=12):
        return EncodedText(rng.integers(0, TEXT_SIZE, rng.integers(1, most)).astype(np.int32), role)

    def image(self, rng, role, corrected=True):
        size = FAMILY.sizes[rng.integers(len(FAMILY.sizes))]
        n = FAMILY.schedule(size).num_tokens
        targets, inputs = rng.integers(0, CODEBOOK_SIZE, (2, n)).astype(np.int32)
        return EncodedImage(size, inputs if corrected else targets, targets, role)

    def document(self, rng, key, task):
        text, image = self.text, self.image
        segments = {
            "text_to_image": lambda: [text(rng, "prompt"), image(rng, "response")],
            "image_to_text": lambda: [image(rng, "prompt"), text(rng, "response")],
            "edit": lambda: [image(rng, "prompt"), text(rng, "prompt"), image(rng, "response")],
            "text": lambda: [text(rng, "response", most=30)],
        }[task]()
        return EncodedDocument(key, task, tuple(segments))

    def documents(self, count, seed=0, tasks=("text_to_image", "image_to_text", "edit", "text")):
        rng = np.random.default_rng(seed)
        return [self.document(rng, f"d{i}#0", tasks[i % len(tasks)]) for i in range(count)]

    def write(self, directory, splits, per_shard=16):
        """Shards of {split: documents}; returns the opened set."""
        directory = pathlib.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        files = {}
        for split, documents in splits.items():
            count = -(-len(documents) // per_shard)
            files[split] = [directory / shards.shard_file(split, i, count) for i in range(count)]
            for i, path in enumerate(files[split]):
                shards.write_shard(path, documents[i * per_shard : (i + 1) * per_shard], FAMILY)
        entries = shards.finish_shards(directory, files)
        manifest = Manifest(
            text_tokenizer="text-a",
            vision_tokenizer="vision-a",
            schedule_family=FAMILY,
            text_size=TEXT_SIZE,
            codebook_size=CODEBOOK_SIZE,
            splits=tuple(SplitEntry(name, len(splits[name]), 0, 1, entries[name]) for name in splits),
            made_from={},
        )
        (directory / FILE_NAME).write_text(manifest.to_json())
        shards.remove_index_parts(files)
        return shards.open_shards(directory)


@pytest.fixture(scope="session")
def samples():
    return Samples()


@pytest.fixture(scope="session")
def shard_set(samples, tmp_path_factory):
    """70 training documents of four tasks in five shards, and 6 of validation. Not to be changed."""
    splits = {"train": samples.documents(70), "validation": samples.documents(6, seed=1)}
    return samples.write(tmp_path_factory.mktemp("shards"), splits)


def flip_byte(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


@pytest.fixture
def broken_shards(samples, tmp_path):
    """Shards of which one record is damaged: (set, documents, number of the damaged record)."""
    documents = samples.documents(20)
    samples.write(tmp_path, {"train": documents}, per_shard=20)
    path = tmp_path / shards.shard_file("train", 0, 1)
    found = path.read_bytes().find(encode(documents[5])[-20:])
    assert found > 0, "the writer compressed the record; damage another byte"
    flip_byte(path, found)
    return shards.open_shards(tmp_path), documents, 5

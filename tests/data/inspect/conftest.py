"""Shards with the bundle that decodes them, and a corpus with pictures."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from nextflow_jax.bundle import save_bundle
from nextflow_jax.data.corpus import writer
from nextflow_jax.data.corpus.raw import Drop, RawDocument, RawImage, RawText
from nextflow_jax.data.filters.config import FiltersConfig
from nextflow_jax.data.filters.fingerprints import fingerprint
from nextflow_jax.data.filters.selection import select
from nextflow_jax.data.records import BrokenRecord, EncodedImage, EncodedText
from nextflow_jax.data.shards import TOKENIZER_DIRECTORY
from tests import tiny_models
from tests.data.conftest import flip_byte

NASTY = "<script>alert('&')</script>"


def fitting(document, number):
    """The document with indices that the tiny bundle knows, a nasty source and, at times, a segment without loss."""
    tokenizer = tiny_models.text_tokenizer()
    segments = []
    for segment in document.segments:
        if isinstance(segment, EncodedText):
            ids = np.asarray(tokenizer.encode(f"{NASTY} the dark side {number}"), np.int32)
            segments.append(EncodedText(ids, segment.role, loss=number % 3 > 0))
        else:
            targets = segment.targets % 24
            inputs = targets if number % 2 else segment.inputs % 24
            segments.append(EncodedImage(segment.size, inputs, targets, segment.role))
    return dataclasses.replace(document, segments=tuple(segments), source=f"zoo{number % 2}{NASTY}", licence="CC0")


def write_shards(directory, samples, count=20, **options):
    """Returns the training documents."""
    documents = [fitting(document, number) for number, document in enumerate(samples.documents(count))]
    validation = [fitting(document, number) for number, document in enumerate(samples.documents(4, seed=1))]
    samples.write(directory, {"train": documents, "validation": validation}, **options)
    tokenizers = {"vision_tokenizer": tiny_models.codec(), "text_tokenizer": tiny_models.text_tokenizer()}
    save_bundle(directory / TOKENIZER_DIRECTORY, **tokenizers, origin={})
    return documents


@pytest.fixture
def shard_directory(samples, tmp_path):
    """20 training documents in two shards and 4 of validation, with the tiny bundle."""
    write_shards(tmp_path / "shards", samples, per_shard=10)
    return tmp_path / "shards"


def png(seed, size):
    buffer = io.BytesIO()
    Image.fromarray(tiny_models.picture(seed, size)).save(buffer, format="PNG")
    return buffer.getvalue()


def captioned(number, data=None, size=(20, 30)):
    picture = RawImage(png(number, size) if data is None else data, size, "response")
    words = RawText(f"{NASTY} {number}", "prompt", loss=False)
    return RawDocument(
        f"web/{number}{NASTY}", "text_to_image", (words, picture), f"web{NASTY}", "CC0", f"kind {number % 2}"
    )


def write_corpus(directory, documents, parts=2):
    """A corpus of these; every third document is validation."""
    directory.mkdir()
    paths = [directory / writer.part_file(part, parts) for part in range(parts)]
    for part, path in enumerate(paths):
        chosen = range(part, len(documents), parts)
        # Of whole documents: ingest would have dropped the broken ones.
        pairs = [(documents[number], fingerprint(captioned(number), FiltersConfig())) for number in chosen]
        writer.write_part(path, f"web{NASTY}", [*pairs, Drop("web/x", "not utf-8")])
    selection = select(writer.load_columns(paths), FiltersConfig(), 0)
    numbers = np.arange(len(documents))
    splits = {"train": numbers[numbers % 3 > 0], "validation": numbers[numbers % 3 == 0]}
    writer.finish_corpus(directory, paths, selection, splits, {})
    return directory


@pytest.fixture
def corpus_directory(tmp_path):
    """9 captioned pictures in two parts."""
    return write_corpus(tmp_path / "corpus", [captioned(number) for number in range(9)])


def damage(path, is_broken):
    """Flips one byte of a file, the first of those tried that `is_broken` sees."""
    for at in range(100, 65_000, 29):
        flip_byte(path, at)
        if is_broken():
            return
        flip_byte(path, at)
    raise AssertionError("no byte matters")


def reads_nothing(source, number):
    """Whether a record cannot be read."""
    try:
        source[number]
    except BrokenRecord:
        return True
    return False

"""Raw documents, drawn pictures and fingerprint columns for the tests of this room."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from nextflow_jax.data.corpus.raw import RawDocument, RawImage, RawText
from nextflow_jax.data.filters.columns import Fingerprint, to_columns
from nextflow_jax.data.filters.hashes import NO_HASH, hash64


def encode(picture, format="PNG", **settings):
    file = io.BytesIO()
    picture.save(file, format, **settings)
    return file.getvalue()


def draw_shapes(seed, side=256, shapes=6):
    """A picture such as OpenMoji's: flat shapes with dark outlines on white."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(picture)
    for _ in range(shapes):
        fill = tuple(rng.integers(0, 256, 3).tolist())
        points = (rng.uniform(0.05, 0.95, (4, 2)) * side).tolist()
        (left, top), (right, bottom) = np.sort(points[:2], axis=0).tolist()
        if rng.random() < 0.5:
            draw.ellipse((left, top, right + side // 8, bottom + side // 8), fill, "black", side // 64)
        else:
            draw.polygon([tuple(point) for point in points], fill, "black", side // 64)
    return picture


def document(*segments, key="k", task="interleaved", label=""):
    """A document of strings (texts) and (height, width) pairs (pictures without bytes), all responses."""
    made = [RawText(one, "response") if isinstance(one, str) else RawImage(b"", one, "response") for one in segments]
    return RawDocument(key, task, tuple(made), "source", "", label)


def make_fingerprint(key, task="text_to_image", pictures=(), text="", label="", colours=None, content=None):
    """A fingerprint of a document whose pictures have these perceptual hashes; each key's content is its own."""
    return Fingerprint(
        key=hash64(key),
        task=hash64(task),
        content=hash64(key if content is None else content, task),
        pictures=hash64("pictures", *map(str, pictures)) if pictures else NO_HASH,
        text=hash64(text) if text else NO_HASH,
        label=hash64(label) if label else NO_HASH,
        perceptual=tuple(pictures),
        colours=tuple(colours or [(0, 0, 0)] * len(pictures)),
    )


def make_columns(fingerprints):
    return to_columns(fingerprints)


def flip(bits, places):
    for place in places:
        bits ^= 1 << int(place)
    return bits


@pytest.fixture(scope="session")
def drawings():
    """60 different drawings."""
    return [draw_shapes(seed) for seed in range(60)]

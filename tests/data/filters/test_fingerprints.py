import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from nextflow_jax.data.corpus.raw import Drop, RawDocument, RawImage, RawText
from nextflow_jax.data.filters.config import FiltersConfig, PictureFilter
from nextflow_jax.data.filters.fingerprints import fingerprint
from nextflow_jax.data.filters.hashes import NO_HASH, hash64
from nextflow_jax.data.filters.perceptual import perceptual_hash
from tests.data.filters.conftest import draw_shapes, encode

CONFIG = FiltersConfig()


def show(data, size=(64, 64)):
    return RawImage(data, size, "response")


def pair(data, text, key="k", task="text_to_image", label=""):
    return RawDocument(key, task, (RawText(text, "prompt"), show(data)), label=label)


PNG = encode(draw_shapes(0, 64))


def test_what_a_fingerprint_depends_on():
    base = fingerprint(pair(PNG, "A cat."), CONFIG)
    same = fingerprint(pair(PNG, "a  cat", key="other"), CONFIG)
    assert same == dataclasses.replace(base, key=hash64("other"))
    other_text = fingerprint(pair(PNG, "a dog"), CONFIG)
    assert other_text.pictures == base.pictures and other_text.perceptual == base.perceptual
    assert other_text.text != base.text and other_text.content != base.content
    other_task = fingerprint(pair(PNG, "A cat.", task="image_to_text"), CONFIG)
    assert other_task.content != base.content and other_task.task != base.task
    other_picture = fingerprint(pair(encode(draw_shapes(1, 64)), "A cat."), CONFIG)
    assert other_picture.pictures != base.pictures and other_picture.text == base.text


def test_the_order_of_segments_is_part_of_the_content():
    one, other = PNG, encode(draw_shapes(1, 64))
    documents = [
        RawDocument("k", "interleaved", (RawText("a", "response"), show(one), show(other))),
        RawDocument("k", "interleaved", (RawText("a", "response"), show(other), show(one))),
        RawDocument("k", "interleaved", (show(one), RawText("a", "response"), show(other))),
    ]
    found = [fingerprint(document, CONFIG) for document in documents]
    assert len({one.content for one in found}) == 3
    assert found[0].pictures == found[2].pictures != found[1].pictures
    assert found[1].perceptual == found[0].perceptual[::-1]


def test_what_a_document_does_not_have_has_no_hash():
    text = fingerprint(RawDocument("k", "text", (RawText("words", "response"),)), CONFIG)
    assert (text.pictures, text.label, text.perceptual, text.colours) == (NO_HASH, NO_HASH, (), ())
    pictures = fingerprint(RawDocument("k", "frames", (RawText(" \n", "response"), show(PNG))), CONFIG)
    assert pictures.text == NO_HASH and pictures.pictures != NO_HASH
    assert fingerprint(pair(PNG, "a", label="cats"), CONFIG).label == hash64("cats")


def test_without_decoding_only_bytes_are_hashed():
    config = FiltersConfig(pictures=PictureFilter(decode=False))
    found = fingerprint(pair(b"no picture at all", "a"), config)
    assert found.perceptual == () and found.pictures != NO_HASH


@pytest.mark.parametrize("data", [PNG[: len(PNG) // 2], b"no picture at all", encode(draw_shapes(0), "JPEG")[:900]])
def test_damaged_pictures_are_dropped(data):
    assert fingerprint(pair(data, "a"), CONFIG) == Drop("k", "damaged")


def test_pictures_without_a_range_of_pixels_are_dropped():
    data = encode(Image.new("F", (64, 64), 3.5), "TIFF")
    assert fingerprint(pair(data, "a"), CONFIG) == Drop("k", "no pixel range")


def test_large_jpegs_hash_as_the_whole_picture_does():
    """They are decoded at a fraction of their size."""
    for seed in range(8):
        data = encode(draw_shapes(seed, 1024), "JPEG", quality=90)
        whole, _ = perceptual_hash(Image.open(io.BytesIO(data)).convert("RGB"))
        (bits,) = fingerprint(pair(data, "a"), CONFIG).perceptual
        assert (bits ^ whole).bit_count() <= 2


def test_rotation_by_exif_and_transparency_are_seen_through():
    picture = draw_shapes(3, 128)
    upright, _ = perceptual_hash(picture)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    opaque = np.any(np.asarray(picture) != 255, axis=2)
    cut_out = Image.fromarray(np.dstack([np.where(opaque[..., None], picture, 0), 255 * opaque]).astype(np.uint8))
    for data in (encode(turned, "JPEG", quality=95, exif=exif), encode(cut_out, "PNG"), encode(picture, "WEBP")):
        (bits,) = fingerprint(pair(data, "a"), CONFIG).perceptual
        assert (bits ^ upright).bit_count() <= 2

"""The fingerprint of one document, made by the worker that reads it: hashes of what is compared with all others."""

import hashlib
import io
import pathlib

from PIL import Image, ImageOps

from nextflow_jax.data.corpus.raw import Drop, RawDocument, RawImage, RawText
from nextflow_jax.data.filters.columns import Fingerprint
from nextflow_jax.data.filters.config import FiltersConfig
from nextflow_jax.data.filters.hashes import NO_HASH, hash64, normalise
from nextflow_jax.data.filters.perceptual import perceptual_hash
from nextflow_jax.data.image_files import FORMATS, RefusedImage, flatten

_BACKGROUND = "#ffffff"
_LOOK_SIDE = 64
"""Pixels a side that the perceptual hash needs at least, to shrink from."""


def fingerprint(document: RawDocument, config: FiltersConfig) -> Fingerprint | Drop:
    """The fingerprint of a document, or why it is dropped: the reason of a picture that cannot be decoded.

    Args:
      document: after its filters.
      config: only `pictures.decode` matters; without it `perceptual` and `colours` are empty.
    """
    contents, pictures, texts = [document.task], [], []
    for segment in document.segments:
        if isinstance(segment, RawText):
            texts.append(normalise(segment.text))
            contents.append("text " + texts[-1])
        else:
            pictures.append(hashlib.sha256(segment.data).hexdigest())
            contents.append("image " + pictures[-1])
    seen = []
    if config.pictures.decode:
        try:
            seen = [_look(segment.data, document.key) for segment in document.segments if isinstance(segment, RawImage)]
        except RefusedImage as refused:
            return Drop(document.key, refused.reason)
    return Fingerprint(
        key=hash64(document.key),
        task=hash64(document.task),
        content=hash64(*contents),
        pictures=hash64(*pictures) if pictures else NO_HASH,
        text=hash64(*texts) if any(texts) else NO_HASH,
        label=hash64(document.label) if document.label else NO_HASH,
        perceptual=tuple(bits for bits, _ in seen),
        colours=tuple(colour for _, colour in seen),
    )


def _look(data: bytes, key: str) -> tuple[int, tuple[int, int, int]]:
    """The perceptual hash and the mean colour of an encoded picture."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            # JPEGs are decoded at a fraction of their size, the least above what the hash looks at.
            picture.draft("RGB", (_LOOK_SIDE, _LOOK_SIDE))
            if picture.mode in ("I", "F") or picture.mode.startswith("F;"):
                raise RefusedImage(pathlib.Path(key), "no pixel range")
            return perceptual_hash(flatten(ImageOps.exif_transpose(picture), _BACKGROUND))
    except RefusedImage:
        raise
    except Exception as error:
        # Decoders of broken files raise all kinds of errors, SyntaxError and struct.error among them.
        raise RefusedImage(pathlib.Path(key), "damaged") from error

"""What is asked of the sampler and what it answers: documents in, continuations out."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, UnidentifiedImageError

from nextflow_jax.config import nearest
from nextflow_jax.errors import UserError
from nextflow_jax.sampling.settings import SamplingSettings

Picture = UInt8[np.ndarray, "height width 3"]


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A document to continue, and how.

    The model writes text until it opens a picture or ends the document, draws the picture, writes on, and so forth,
    within the two caps. `begin_with_image` opens a picture right away, which is what a text-to-image or an editing
    request wants.
    """

    document: Sequence[str | Picture]
    """Texts and pictures in order; the size of each picture must be one that the bundle knows."""
    size: tuple[int, int] | None = None
    """Height and width of the pictures to draw; None: the bundle's first size."""
    begin_with_image: bool = False
    max_images: int = 1
    max_text_tokens: int = 64
    """Text tokens written in all, between and after pictures."""
    seed: int = 0
    """The only source of randomness: the same request gives the same answer in any batch."""
    settings: SamplingSettings | None = None
    """None: the bundle's."""


@dataclasses.dataclass(frozen=True, eq=False)
class GeneratedText:
    """Text that the model wrote."""

    text: str
    tokens: Int[np.ndarray, "tokens"]
    log_probs: Float[np.ndarray, "tokens"]
    """Log-probability of each token under the distribution it was drawn from (filters and temperature included)."""


@dataclasses.dataclass(frozen=True, eq=False)
class GeneratedImage:
    """A picture that the model drew."""

    pixels: Picture
    codes: Int[np.ndarray, "N"]
    log_probs: Float[np.ndarray, "N"]
    """As for text; guidance included."""
    partial: tuple[Picture, ...] = ()
    """The picture after each scale, when asked for; the last equals `pixels`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """The continuation of one request."""

    segments: tuple[GeneratedText | GeneratedImage, ...]
    finish: str
    """Why it ended: "end" (the model ended the document), "text_limit", "image_limit" or "positions"."""

    @property
    def text(self) -> str:
        """All text, joined."""
        return "".join(segment.text for segment in self.segments if isinstance(segment, GeneratedText))

    @property
    def images(self) -> list[Picture]:
        """All pictures, in order."""
        return [segment.pixels for segment in self.segments if isinstance(segment, GeneratedImage)]


def text_to_image(prompt: str, **options: Any) -> Request:
    """One picture of `prompt`; `options` are fields of Request."""
    return Request((prompt,), begin_with_image=True, max_text_tokens=0, **options)


def caption(image: Picture, **options: Any) -> Request:
    """Text about a picture, no picture in the answer."""
    return Request((image,), max_images=0, **options)


def edit(image: Picture, instruction: str, **options: Any) -> Request:
    """One picture: `image` changed as the instruction says."""
    return Request((image, instruction), begin_with_image=True, max_text_tokens=0, **options)


def read_document(path: str | pathlib.Path) -> Request:
    """The request in a JSON file.

        {"segments": [{"text": "the sun"}, {"image": "sun.png"}, ...],
         "generate": {"max_images": 1, "max_text_tokens": 64, "size": "32x32", "begin_with_image": false}}

    Paths of images are relative to the file. "generate" and each of its keys may be absent.

    Raises:
      UserError: no such file, no such JSON, an unknown key or a wrong value; the message says where.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f'--document {path}: no such file; give a JSON file with "segments"')
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"--document {path}: not JSON: {error}") from error
    _check_keys(content, ("segments", "generate"), str(path))
    segments = content.get("segments")
    if not isinstance(segments, list) or not segments:
        raise UserError(f'{path}: "segments" must list at least one {{"text": ...}} or {{"image": path}}')
    document = [_read_segment(item, f"{path}: segments[{i}]", path.parent) for i, item in enumerate(segments)]
    return Request(tuple(document), **_read_options(content.get("generate", {}), f"{path}: generate"))


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of "HxW".

    Raises:
      UserError: anything else.
    """
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise UserError(f"size {text!r}: write HEIGHTxWIDTH in pixels, e.g. 32x32")
    return int(height), int(width)


def read_picture(path: pathlib.Path) -> Picture:
    """An image file as RGB.

    Raises:
      UserError: no such file, or none that Pillow reads.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"), np.uint8)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such image file") from error
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path}: not a readable image ({error})") from error


def _read_segment(item: Any, where: str, folder: pathlib.Path) -> str | Picture:
    _check_keys(item, ("text", "image"), where)
    if len(item) != 1 or not isinstance(next(iter(item.values())), str):
        raise UserError(f'{where} = {item}: write {{"text": "..."}} or {{"image": "path.png"}}')
    return item["text"] if "text" in item else read_picture(folder / item["image"])


def _read_options(options: Any, where: str) -> dict[str, Any]:
    kinds = {"max_images": int, "max_text_tokens": int, "size": str, "begin_with_image": bool}
    _check_keys(options, tuple(kinds), where)
    for key, value in options.items():
        if type(value) is not kinds[key]:
            raise UserError(f"{where}.{key} = {value!r}: expects {kinds[key].__name__}")
    return {key: parse_size(value) if key == "size" else value for key, value in options.items()}


def _check_keys(item: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(item, dict):
        raise UserError(f"{where}: expects an object with {', '.join(known)}")
    for key in item:
        if key not in known:
            raise UserError(f"{where}.{key} is not a key of a document; {nearest(key, known)}")

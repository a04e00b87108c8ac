"""Image files of unknown origin to RGB pixels: every odd kind is handled, or refused with a reason that can be counted.

Handled: palettes, transparency (composited on a background), grey, 16 bits, CMYK and other colour spaces, EXIF
rotation, animations (first frame). Refused: see REASONS. Only plain picture formats are opened, none that runs code.
"""

import contextlib
import dataclasses
import io
import pathlib
import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from nextflow_jax.config import Fault

Size = tuple[int, int]
"""Height and width in pixels."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
"""Files with these endings are taken for images."""

REASONS = {
    "empty": "has no bytes",
    "not an image": f"is none of {', '.join(FORMATS)}",
    "too large": "has more pixels than max_pixels",
    "too small": "has a side below min_side",
    "no pixel range": "has floating-point or 32-bit pixels, whose black and white are not known",
    "damaged": "begins like an image and cannot be decoded",
    "unreadable": "cannot be read (permissions, a broken link)",
}
"""Why a file is refused."""

# ImageLimits refuses all that Pillow would warn of; warnings cannot be caught one by one in several threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""


@dataclasses.dataclass(frozen=True)
class ImageLimits:
    """Which pictures are refused for their size."""

    max_pixels: int = 80_000_000
    """Height x width; read from the header, before any pixel is decoded."""
    min_side: int = 16
    """Pixels of the shorter side."""

    def faults(self) -> Iterator[Fault]:
        """The rules these limits break."""
        if not 1 <= self.max_pixels <= Image.MAX_IMAGE_PIXELS:
            rule = f"must be from 1 to Pillow's own limit, {Image.MAX_IMAGE_PIXELS}"
            yield Fault("max_pixels", self.max_pixels, rule, "shrink larger pictures before")
        if self.min_side < 1:
            yield Fault("min_side", self.min_side, "must be at least 1", "use e.g. 16")


class RefusedImage(Exception):
    """A file that is no usable picture; `reason` is a key of REASONS."""

    def __init__(self, path: pathlib.Path | bytes, reason: str) -> None:
        name = f"{len(path):,} bytes" if isinstance(path, bytes) else path
        super().__init__(f"{name}: {reason}: {REASONS[reason]}")
        self.reason = reason


def read_size(path: pathlib.Path | bytes, limits: ImageLimits) -> Size:
    """Height and width of the upright picture, from the header alone; of a file, or of a file's bytes.

    Raises:
      RefusedImage: with the reason.
    """
    with _reading(path) as picture:
        return _upright_size(path, picture, limits)


def read_image(
    path: pathlib.Path | bytes, size: Size, background: str, limits: ImageLimits
) -> UInt8[np.ndarray, "height width 3"]:
    """The picture, cropped around its centre to the ratio of `size` and resized to it (antialiased).

    Args:
      path: of the file, or its bytes.
      size: wanted height and width.
      background: #rrggbb behind transparent parts.
      limits: of what is decoded at all.

    Raises:
      RefusedImage: with the reason.
    """
    with _reading(path) as picture:
        height, width = _upright_size(path, picture, limits)
        if picture.mode in ("I", "F") or picture.mode.startswith("F;"):
            raise RefusedImage(path, "no pixel range")
        zoom = 2 * max(size[0] / height, size[1] / width)
        if zoom < 1 and picture.format == "JPEG":
            # Decodes at 1/2, 1/4 or 1/8 of the size, never below what the resize needs; several times faster.
            drafted = [max(1, int(side * zoom) + 1) for side in picture.size]
            picture.draft(None, tuple(drafted))
        return fit(flatten(ImageOps.exif_transpose(picture), background), size)


def flatten(picture: Image.Image, background: str) -> Image.Image:
    """The picture as RGB: 16 bits to 8, transparent parts on `background`, colour spaces converted."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        canvas = Image.new("RGBA", picture.size, ImageColor.getrgb(background))
        picture = Image.alpha_composite(canvas, picture)
    return picture.convert("RGB")


def fit(picture: Image.Image, size: Size) -> UInt8[np.ndarray, "height width 3"]:
    """The largest centred window with the ratio of `size`, resized to `size` (Lanczos over the whole footprint)."""
    zoom = min(picture.height / size[0], picture.width / size[1])
    height, width = size[0] * zoom, size[1] * zoom
    left, top = (picture.width - width) / 2, (picture.height - height) / 2
    box = (left, top, min(left + width, picture.width), min(top + height, picture.height))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.LANCZOS, box=box))


@contextlib.contextmanager
def _reading(path: pathlib.Path | bytes) -> Iterator[Image.Image]:
    """Opens a file; whatever is raised on it leaves as RefusedImage."""
    try:
        file = io.BytesIO(path) if isinstance(path, bytes) else open(path, "rb")  # noqa: SIM115  (closed below; what its opening raises has a reason of its own)
    except OSError as error:
        raise RefusedImage(path, "unreadable") from error
    with file:
        try:
            if not file.read(1):
                raise RefusedImage(path, "empty")
            file.seek(0)
            yield Image.open(file, formats=FORMATS)
        except RefusedImage:
            raise
        except Image.DecompressionBombError as error:
            raise RefusedImage(path, "too large") from error
        except UnidentifiedImageError as error:
            raise RefusedImage(path, "not an image") from error
        except Exception as error:
            # Decoders of broken files raise all kinds of errors, SyntaxError and struct.error among them.
            raise RefusedImage(path, "damaged") from error


def _upright_size(path: pathlib.Path | bytes, picture: Image.Image, limits: ImageLimits) -> Size:
    width, height = picture.size
    if width * height > limits.max_pixels:
        raise RefusedImage(path, "too large")
    if min(width, height) < limits.min_side:
        raise RefusedImage(path, "too small")
    # Pillow decodes a whole PNG to look for a rotation behind its pixels, where hardly any writer puts it.
    in_header = picture.format != "PNG" or "exif" in picture.info
    turned = in_header and picture.getexif().get(_ORIENTATION) in _TURNED
    return (width, height) if turned else (height, width)

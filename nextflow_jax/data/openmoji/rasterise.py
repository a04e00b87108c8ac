"""SVG files to pixels at any height and width: fitted, centred, on a background colour."""

import io
import pathlib

import numpy as np
import resvg_py
from jaxtyping import UInt8
from PIL import Image, ImageColor


def rasterise(svg: pathlib.Path, size: tuple[int, int], background: str) -> UInt8[np.ndarray, "height width 3"]:
    """Draws a square SVG as large as fits into `size`, centred, aspect kept.

    Args:
      svg: path of the file.
      size: height and width in pixels.
      background: colour of whatever the drawing leaves free, #rrggbb.
    """
    height, width = size
    side = min(height, width)
    # Fonts would make the pixels depend on the machine; OpenMoji's drawings are outlines and need none.
    png = resvg_py.svg_to_bytes(
        svg_path=str(svg), width=side, height=side, background=background, skip_system_fonts=True
    )
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = ImageColor.getrgb(background)
    top, left = (height - side) // 2, (width - side) // 2
    canvas[top : top + side, left : left + side] = decode_png(png)
    return canvas


def encode_png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """A PNG file of the pixels."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def decode_png(png: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a PNG file, without its alpha channel."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

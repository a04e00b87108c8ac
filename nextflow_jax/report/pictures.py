"""Pictures in the page: PNGs inside the HTML, drawn larger without smoothing, in strips with words underneath."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

RIGHT, WRONG = "right", "wrong"

SHOWN_WIDTH = 96
"""Pictures are drawn about this wide (in CSS pixels), each of their pixels a whole number of these."""


def picture(image: UInt8[np.ndarray, "height width 3"], alt: str, shown_width: int = SHOWN_WIDTH) -> str:
    """An <img> element that carries its PNG; `alt` says what it shows."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = (side * max(1, round(shown_width / image.shape[1])) for side in image.shape[:2])
    return f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{html.escape(alt)}">'


def card(parts: Sequence[str], caption: str, right: bool | None = None) -> str:
    """Pictures and arrows in a row over a caption, framed green when `right`, red when not, grey when not judged.

    Args:
      parts: HTML of each picture or sign, left to right.
      caption: plain text; line breaks are kept.
      right: the judgement; also written as a word, so that it does not hang on colour alone.
    """
    if right is None:
        judged, mark = "", ""
    else:
        judged = RIGHT if right else WRONG
        mark = f'<span class="mark {judged}">{judged}</span> '
    words = html.escape(caption).replace("\n", "<br>")
    pictures = "".join(parts)
    return (
        f'<figure class="card {judged}"><div class="row">{pictures}</div>'
        f"<figcaption>{mark}{words}</figcaption></figure>"
    )


def sign(text: str) -> str:
    """A short sign between pictures, such as an arrow."""
    return f'<span class="sign">{html.escape(text)}</span>'


def gallery(cards: Sequence[str]) -> str:
    """Cards that wrap over as many rows as the window needs."""
    return f'<div class="gallery">{"".join(cards)}</div>'


def stack(*parts: str) -> str:
    """Pictures above one another: an original and its copy."""
    return f'<span class="stack">{"".join(parts)}</span>'


def strip(parts: Sequence[str]) -> str:
    """Pictures in a row of their own, within a stack."""
    return f'<span class="row">{"".join(parts)}</span>'

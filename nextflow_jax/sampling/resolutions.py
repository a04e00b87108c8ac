"""The size of the pictures to draw: said in pixels, as a ratio, taken from a picture, or written by the model.

A picture's schedule and the encoding of its number of scales are inputs of its first position, `<boi>`: its size must
be known before the model draws anything of it. What the model can choose it therefore has to write: with the size
"auto", the last mark such as

    <size 512x768>      rows x columns: 512 pixels high, 768 wide; not a known size: the nearest ratio
    <size 16:9>         width : height
    <size portrait>     a name of RATIOS

in the text before the picture, whoever wrote it, decides; without a mark it is the size of the prompt's last picture,
or the family's first. A model writes marks when texts with them are what it was trained on.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

from nextflow_jax.errors import UserError
from nextflow_jax.scales import ScheduleFamily

AUTO, CONDITION = "auto", "condition"
"""Sizes by name: chosen in the text; that of the last picture of the prompt."""

RATIOS = {
    "square": (1, 1),
    "landscape": (3, 2),
    "portrait": (2, 3),
    "widescreen": (16, 9),
    "tall": (9, 16),
    "panorama": (3, 1),
}
"""Ratios by name: width, height."""

Size = tuple[int, int]
"""Height and width in pixels."""

_MARK = re.compile(r"<size\s+([^<>\s]+)\s*>")


@dataclasses.dataclass(frozen=True)
class Resolution:
    """Of the pictures of one answer."""

    size: Size
    """Of every picture, unless the text says otherwise."""
    from_text: bool = False
    """Whether marks in the text count."""

    def after(self, texts: Sequence[str], family: ScheduleFamily) -> Size:
        """The size of a picture that follows these texts."""
        return (self.from_text and written_size(texts, family)) or self.size

    def possible(self, family: ScheduleFamily) -> tuple[Size, ...]:
        """Sizes that pictures of the answer may have."""
        return family.sizes if self.from_text else (self.size,)


def resolve(wanted: Size | str | None, family: ScheduleFamily, pictures: Sequence[Size]) -> Resolution:
    """What a request asks for.

    Args:
      wanted: (height, width), "HxW", "W:H", a name of RATIOS, AUTO, CONDITION, or None for the family's first size.
      family: the sizes there are.
      pictures: sizes of the prompt's pictures, in order.

    Raises:
      UserError: a size the family does not know, words that are no size, "condition" without a picture.
    """
    if isinstance(wanted, str):
        wanted = parse_resolution(wanted)
    if wanted == CONDITION and not pictures:
        raise UserError(f"size {CONDITION!r}: the prompt has no picture; give one, or a size such as 'square'")
    if wanted in (AUTO, CONDITION):
        return Resolution(pictures[-1] if pictures else family.sizes[0], from_text=wanted == AUTO)
    if isinstance(wanted, str):
        return Resolution(nearest_size(*_ratio(wanted), family))
    size = family.sizes[0] if wanted is None else wanted
    family.schedule(size)
    return Resolution(size)


def parse_resolution(text: str) -> Size | str:
    """(height, width) of "HxW"; ratios and names as they are.

    Raises:
      UserError: anything else.
    """
    height, _, width = text.partition("x")
    if height.isdecimal() and width.isdecimal():
        return int(height), int(width)
    if text not in (AUTO, CONDITION) and _ratio(text) is None:
        names = ", ".join([*RATIOS, AUTO, CONDITION])
        raise UserError(f"size {text!r}: write HEIGHTxWIDTH in pixels, WIDTH:HEIGHT, or one of {names}")
    return text


def nearest_size(width: float | int, height: float | int, family: ScheduleFamily) -> Size:
    """The family's size whose logarithm of width / height is nearest; then the one of most pixels, then the first.

    Args:
      width: of the ratio, any unit.
      height: in the same unit.
      family: the sizes there are.
    """

    def distance(size: Size) -> tuple[float, int]:
        off = abs(math.log(size[1] / size[0]) - math.log(width / height))
        return round(off, 9), -size[0] * size[1]

    return min(family.sizes, key=distance)


def written_size(texts: Sequence[str], family: ScheduleFamily) -> Size | None:
    """The size that the last readable mark of the texts names; None where there is none."""
    for words in reversed([mark for text in texts for mark in _MARK.findall(text)]):
        height, _, width = words.partition("x")
        if height.isdecimal() and width.isdecimal() and min(int(height), int(width)) > 0:
            size = int(height), int(width)
            return size if size in family.sizes else nearest_size(size[1], size[0], family)
        if (ratio := _ratio(words)) is not None:
            return nearest_size(*ratio, family)
    return None


def _ratio(text: str) -> tuple[float | int, float | int] | None:
    """(width, height) of "W:H" or of a name."""
    if text in RATIOS:
        return RATIOS[text]
    match = re.fullmatch(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)", text)
    if match is None or min(map(float, match.groups())) <= 0:
        return None
    return float(match[1]), float(match[2])

"""Which scripts a text is written in, by the Unicode blocks of its letters: a cheap stand-in for its language.

The ranges are those of the Unicode Character Database's Blocks.txt, blocks of one script joined; letters that belong to
no script there (such as those for phonetics) count for none.
"""

import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

SCRIPTS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "Arabic": ((0x0600, 0x06FF), (0x0750, 0x077F), (0x0870, 0x08FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFE)),
    "Armenian": ((0x0530, 0x058F), (0xFB13, 0xFB17)),
    "Bengali": ((0x0980, 0x09FF),),
    "Cyrillic": ((0x0400, 0x052F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    "Devanagari": ((0x0900, 0x097F), (0xA8E0, 0xA8FF)),
    "Ethiopic": ((0x1200, 0x139F), (0x2D80, 0x2DDF), (0xAB00, 0xAB2F)),
    "Georgian": ((0x10A0, 0x10FF), (0x1C90, 0x1CBF), (0x2D00, 0x2D2F)),
    "Greek": ((0x0370, 0x03FF), (0x1F00, 0x1FFF)),
    "Gujarati": ((0x0A80, 0x0AFF),),
    "Gurmukhi": ((0x0A00, 0x0A7F),),
    "Han": ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF),
            (0x20000, 0x323AF)),
    "Hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),
    "Hebrew": ((0x0590, 0x05FF), (0xFB1D, 0xFB4F)),
    "Kana": ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9D), (0x1AFF0, 0x1B16F)),
    "Kannada": ((0x0C80, 0x0CFF),),
    "Khmer": ((0x1780, 0x17FF), (0x19E0, 0x19FF)),
    "Lao": ((0x0E80, 0x0EFF),),
    "Latin": ((0x0041, 0x005A), (0x0061, 0x007A), (0x00AA, 0x00AA), (0x00BA, 0x00BA), (0x00C0, 0x00D6),
              (0x00D8, 0x00F6), (0x00F8, 0x024F), (0x1E00, 0x1EFF), (0x2C60, 0x2C7F), (0xA720, 0xA7FF),
              (0xFB00, 0xFB06), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A)),
    "Malayalam": ((0x0D00, 0x0D7F),),
    "Mongolian": ((0x1800, 0x18AF),),
    "Myanmar": ((0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F)),
    "Sinhala": ((0x0D80, 0x0DFF),),
    "Tamil": ((0x0B80, 0x0BFF),),
    "Telugu": ((0x0C00, 0x0C7F),),
    "Thai": ((0x0E00, 0x0E7F),),
    "Tibetan": ((0x0F00, 0x0FFF),),
}  # fmt: skip
"""Script to the first and last code point of its ranges. Kana is Hiragana and Katakana."""

_NO_SCRIPT = "other"
_RANGES = sorted((first, last, name) for name, ranges in SCRIPTS.items() for first, last in ranges)
_FIRST = np.asarray([first for first, _, _ in _RANGES])
_LAST = np.asarray([last for _, last, _ in _RANGES])
_NAMES = (*SCRIPTS, _NO_SCRIPT)
_SCRIPT = np.asarray([_NAMES.index(name) for _, _, name in _RANGES])


def count_scripts(text: str) -> dict[str, int]:
    """How many letters of `text` are of each script, "other" included; scripts with none are left out.

    Letters are the characters of Unicode's category L; marks, digits, signs and emoji are of no script.
    """
    letters = [ord(character) for character in text if unicodedata.category(character)[0] == "L"]
    points = np.asarray(letters, np.int64)
    places = np.searchsorted(_FIRST, points, side="right") - 1
    inside = (places >= 0) & (points <= _LAST[places])
    counts = np.bincount(np.where(inside, _SCRIPT[places], len(SCRIPTS)), minlength=len(_NAMES))
    return {name: int(count) for name, count in zip(_NAMES, counts) if count}


def script_share(text: str, scripts: Sequence[str]) -> float:
    """The share of the letters of `text` that are of `scripts`; 1.0 when it has no letters."""
    counts = count_scripts(text)
    letters = sum(counts.values())
    return sum(counts.get(script, 0) for script in scripts) / letters if letters else 1.0

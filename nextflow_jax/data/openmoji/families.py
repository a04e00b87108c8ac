"""Families that names and order define, beside those of code points: colours of one thing, sequences of pictures."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white", "grey", "pink")


@dataclasses.dataclass(frozen=True)
class Sequence:
    """Emoji that show one thing changing, in order."""

    name: str
    characters: tuple[str, ...]
    cyclic: bool
    """Whether the first follows the last."""
    strides: tuple[int, ...] = (1,)
    """Steps at which the pictures are shown; 2 on the clock shows full hours, or half hours, alone."""


SEQUENCES = (
    Sequence("clock", tuple("🕐🕜🕑🕝🕒🕞🕓🕟🕔🕠🕕🕡🕖🕢🕗🕣🕘🕤🕙🕥🕚🕦🕛🕧"), cyclic=True, strides=(1, 2)),
    Sequence("moon", tuple("🌑🌒🌓🌔🌕🌖🌗🌘"), cyclic=True),
    Sequence("earth", tuple("🌍🌎🌏"), cyclic=True),
    Sequence("compass", ("⬆️", "↗️", "➡️", "↘️", "⬇️", "↙️", "⬅️", "↖️"), cyclic=True),
    Sequence("zodiac", tuple("♈♉♊♋♌♍♎♏♐♑♒♓"), cyclic=True),
    Sequence("keycap", (*(f"{digit}\ufe0f\u20e3" for digit in "0123456789"), "🔟"), cyclic=False),
    Sequence("volume", tuple("🔇🔈🔉🔊"), cyclic=False),
    Sequence("chick", tuple("🥚🐣🐤"), cyclic=False),
    Sequence("medal", tuple("🥉🥈🥇"), cyclic=False),
)
"""Pictures a "frames" document shows one after another."""


def colour_families(captions: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Finds things that come in several colours by their names: "red heart", "green heart", ...

    Args:
      captions: key to English caption.

    Returns:
      Key to (the name without the colour, the colour), for names with exactly one colour word whose remainder at least
      two names share.
    """
    found = defaultdict(dict)
    for key, caption in captions.items():
        words = caption.split(" ")
        colours = [word for word in words if word in COLOURS]
        if len(colours) == 1 and "hair" not in words:
            found[" ".join(word for word in words if word not in COLOURS)][key] = colours[0]
    return {
        key: (thing, colour) for thing, members in found.items() if len(members) > 1 for key, colour in members.items()
    }

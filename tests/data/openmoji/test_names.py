"""The list of emoji: complete, in every language, each in a group, each base free of skin tones."""

import emoji
import pytest

from nextflow_jax.data.openmoji import names
from nextflow_jax.data.openmoji.families import SEQUENCES, colour_families
from nextflow_jax.data.openmoji.names import LANGUAGES, list_emoji, sequence_keys
from nextflow_jax.errors import UserError


def test_every_fully_qualified_emoji_with_a_drawing_is_listed_once():
    entries = list_emoji()
    listed = {entry.characters for entry in entries}
    assert len(listed) == len(entries) == len({entry.key for entry in entries}) == 3944
    assert all(emoji.EMOJI_DATA[characters]["status"] == 2 for characters in listed)
    drawn = {entry.svg.name for entry in entries}
    folder = entries[0].svg.parent
    for characters, facts in emoji.EMOJI_DATA.items():
        if facts["status"] == 2 and characters not in listed:
            plain = "-".join(f"{ord(c):04X}" for c in characters if c != "\ufe0f")
            assert f"{plain}.svg" not in drawn
            assert not (folder / f"{plain}.svg").exists()


def test_captions_are_the_names_of_the_emoji_package_in_plain_words():
    assert set(LANGUAGES) == set(emoji.LANGUAGES)
    by_characters = {entry.characters: entry for entry in list_emoji()}
    entry = by_characters["👩🏿‍🚀"]
    assert entry.captions["en"] == "woman astronaut dark skin tone"
    for entry in by_characters.values():
        assert set(entry.captions) == set(LANGUAGES)
        for language, caption in entry.captions.items():
            assert caption.replace(" ", "_") == emoji.EMOJI_DATA[entry.characters][language].strip(":_")
            assert "_" not in caption and ":" not in caption and caption == caption.strip()


def test_english_captions_are_unique():
    captions = [entry.captions["en"] for entry in list_emoji()]
    assert len(set(captions)) == len(captions)


def test_groups_follow_unicode():
    by_characters = {entry.characters: entry for entry in list_emoji()}
    for characters, place in {
        "😀": ("Smileys & Emotion", "face-smiling"),
        "👩🏿‍🚀": ("People & Body", "person-role"),
        "🕐": ("Travel & Places", "time"),
        "🌑": ("Travel & Places", "sky & weather"),
        "🇫🇷": ("Flags", "country-flag"),
        "❤️": ("Smileys & Emotion", "heart"),
        "#️⃣": ("Symbols", "keycap"),
    }.items():
        assert (by_characters[characters].group, by_characters[characters].subgroup) == place
    groups = list(dict.fromkeys(entry.group for entry in list_emoji()))
    assert len(groups) == 9
    assert groups[0] == "Smileys & Emotion" and groups[-1] == "Flags"


def test_bases_are_the_same_name_without_the_tones():
    by_key = {entry.key: entry for entry in list_emoji()}
    for entry in by_key.values():
        base = by_key[entry.base]
        assert "skin_tone" not in base.attributes
        assert base.family == entry.family
        if entry.base == entry.key:
            continue
        kept = {name: value for name, value in entry.attributes.items() if name != "skin_tone"}
        if "," not in entry.attributes["skin_tone"]:
            assert base.attributes == kept
            toneless = entry.captions["en"].replace(f" {entry.attributes['skin_tone']} skin tone", "")
            assert base.captions["en"] == toneless


def test_sequences_name_existing_pictures_in_order():
    by_key = {entry.key: entry for entry in list_emoji()}
    hours = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    for sequence in SEQUENCES:
        keys = sequence_keys(sequence)
        assert len(set(keys)) == len(sequence.characters) >= 3
        assert {by_key[key].family for key in keys} == {sequence.name}
        if sequence.name == "clock":
            times = [by_key[key].captions["en"] for key in keys]
            assert times == [f"{hour}{half}" for hour in hours for half in (" o’clock", "-thirty")]


def test_colours_need_company_and_exactly_one_colour_word():
    things = ["red heart", "blue heart", "black cat", "red and blue box", "green box", "man red hair", "woman red hair"]
    captions = {name: name for name in things}
    assert colour_families(captions) == {"red heart": ("heart", "red"), "blue heart": ("heart", "blue")}


def test_an_emoji_without_a_group_is_named(monkeypatch):
    known = names._read_groups()
    monkeypatch.setattr(names, "_read_groups", lambda: {key: value for key, value in known.items() if key != "😀"})
    with pytest.raises(UserError, match="😀 .1F600. is newer than groups.txt"):
        names.list_emoji.__wrapped__()

"""The named selections: what the quickstart and the tests are promised to find in them."""

import collections

import pytest

from nextflow_jax.data.openmoji.names import list_emoji
from nextflow_jax.data.openmoji.subsets import SUBSETS


@pytest.mark.parametrize("name", SUBSETS)
def test_subsets_are_repeatable_without_repetition_and_have_every_split(name, splits):
    chosen = [entry.key for entry in SUBSETS[name](list_emoji(), splits)]
    assert chosen == [entry.key for entry in SUBSETS[name](list_emoji(), splits)]
    assert len(set(chosen)) == len(chosen)
    assert {splits.of[key] for key in chosen} == {"train", "validation", "heldout"}


def test_all_is_everything(splits):
    assert len(SUBSETS["all"](list_emoji(), splits)) == len(list_emoji())


def test_quickstart_has_sixty_bases_in_every_tone_and_150_others(splits):
    chosen = SUBSETS["quickstart"](list_emoji(), splits)
    bases = collections.defaultdict(list)
    for entry in chosen:
        if splits.of[entry.key] != "validation":
            bases[entry.base].append(entry)
    toned = [members for members in bases.values() if len(members) > 1]
    assert len(toned) == 60
    for members in toned:
        assert len({entry.attributes.get("skin_tone") for entry in members}) == len(members) == 6
        assert any(splits.of[entry.key] == "heldout" for entry in members)
    counts = collections.Counter(splits.of[entry.key] for entry in chosen)
    assert sum(len(members) == 1 for members in bases.values()) == 150
    assert counts["train"] + counts["heldout"] == 60 * 6 + 150
    assert counts["validation"] == 100
    families = collections.Counter(entry.family for entry in chosen)
    assert families["moon"] == 8 and families["heart"] == 11 and families["circle"] == 9


def test_tiny_has_some_of_everything(splits):
    chosen = SUBSETS["tiny"](list_emoji(), splits)
    assert len(chosen) == 27
    counts = collections.Counter(splits.of[entry.key] for entry in chosen)
    assert counts == {"train": 21, "validation": 3, "heldout": 3}
    keys = {entry.key for entry in chosen}
    for entry in chosen:
        if splits.of[entry.key] == "heldout":
            assert entry.base in keys
    families = collections.Counter(entry.family for entry in chosen)
    assert families["clock"] == families["moon"] == 4 and families["heart"] == 2

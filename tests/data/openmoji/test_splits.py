"""Splits: repeatable, families whole, held-out combinations new but made of known parts, no picture on both sides."""

import collections

import numpy as np

from nextflow_jax.data.openmoji.names import list_emoji
from nextflow_jax.data.openmoji.rasterise import rasterise
from nextflow_jax.data.openmoji.splits import assign_splits, fraction


def test_shares(splits):
    counts = collections.Counter(splits.of.values())
    single = [entry for entry in list_emoji() if "," not in entry.attributes.get("skin_tone", ",")]
    trainable = [entry for entry in single if splits.of[entry.key] != "validation"]
    assert set(counts) == {"train", "validation", "heldout"}
    assert 0.03 < counts["validation"] / len(splits.of) < 0.07
    assert 0.08 < counts["heldout"] / len(trainable) < 0.12


def test_splits_do_not_depend_on_order_or_on_the_rest(splits):
    backwards = assign_splits(list_emoji()[::-1])
    assert backwards.of == splits.of
    people = [entry for entry in list_emoji() if entry.group == "People & Body"]
    assert assign_splits(people).of == {entry.key: splits.of[entry.key] for entry in people}


def test_validation_holds_whole_families(splits):
    of_family = collections.defaultdict(set)
    for entry in list_emoji():
        of_family[entry.family].add(splits.of[entry.key])
    for family, found in of_family.items():
        assert found == {"validation"} or "validation" not in found or family in _flags_with_twins(splits)


def _flags_with_twins(splits):
    return {entry.family for entry in list_emoji() if entry.key in splits.train_twins}


def test_heldout_combinations_are_new_but_their_parts_are_known(splits):
    by_key = {entry.key: entry for entry in list_emoji()}
    trained = [entry for entry in list_emoji() if splits.of[entry.key] == "train"]
    seen_tones = {entry.attributes.get("skin_tone") for entry in trained}
    combinations = {(entry.base, entry.attributes.get("skin_tone")) for entry in trained}
    for key, split in splits.of.items():
        if split == "heldout":
            entry = by_key[key]
            assert splits.of[entry.base] == "train"
            assert entry.attributes["skin_tone"] in seen_tones
            assert (entry.base, entry.attributes["skin_tone"]) not in combinations


def test_no_picture_is_on_both_sides(splits):
    """Every pair of equal drawings, not only those that the assignment compares."""
    drawings = {entry.key: rasterise(entry.svg, (16, 16), "#ffffff") for entry in list_emoji()}
    trained = {drawings[key].tobytes() for key, split in splits.of.items() if split == "train"}
    for key, split in splits.of.items():
        assert split == "train" or drawings[key].tobytes() not in trained, key


def test_listed_twins_look_the_same_and_are_in_train(splits):
    drawings = {entry.key: entry.svg for entry in list_emoji()}
    assert splits.train_twins
    for pair in splits.train_twins.items():
        assert [splits.of[key] for key in pair] == ["train", "train"]
        first, second = (rasterise(drawings[key], (32, 32), "#ffffff").astype(int) for key in pair)
        assert np.abs(first - second).max() <= 12


def test_fractions_are_uniform_and_differ_by_name():
    values = [fraction("heldout", str(i)) for i in range(2000)]
    assert abs(np.mean(values) - 0.5) < 0.03
    assert np.histogram(values, bins=10, range=(0, 1))[0].min() > 150
    assert fraction("a", "b") != fraction("b", "a")

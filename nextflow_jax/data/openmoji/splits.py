"""Which picture is for training, which for validation, which held out: by hashes of names, whatever size is drawn."""

import dataclasses
import functools
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nextflow_jax.data.openmoji.attributes import SKIN_TONES
from nextflow_jax.data.openmoji.names import Emoji, list_emoji
from nextflow_jax.data.openmoji.rasterise import rasterise

_VALIDATION_SHARE = 0.06
_HELDOUT_SHARE = 0.12
_TONES = tuple(SKIN_TONES.values())

_TRAINED_FAMILIES = frozenset({"clock", "moon", "heart", "circle"})
"""Families that the frame and colour tasks cannot do without."""

_VALIDATION_FAMILIES = frozenset({"compass"})
"""A sequence that is never trained on, for frames of something new."""

_COMPARED_SIZE = (32, 32)
_TWIN_TOLERANCE = 12
"""Largest difference of a colour channel, of 255, between drawings that count as the same picture. Real differences
start at 19; redrawn copies of one picture ("couple with heart" and "couple with heart woman man") reach 7."""


@dataclasses.dataclass(frozen=True)
class Splits:
    """Key to split for every picture, and the pictures that a twin brought back to train."""

    of: Mapping[str, str]
    train_twins: Mapping[str, str]
    """Key chosen for validation or heldout -> key of the train picture that looks the same; both are in train."""


def fraction(*names: str) -> float:
    """A number in [0, 1) that depends on the names alone."""
    digest = hashlib.sha256("/".join(names).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@functools.cache
def emoji_splits() -> Splits:
    """The splits of all emoji; made once a process, for it draws some hundred pictures to compare them."""
    return assign_splits(list_emoji())


def assign_splits(entries: Sequence[Emoji]) -> Splits:
    """Assigns every emoji to a split.

    Whole families, about 5%, go to validation. Of the pictures with a single skin tone whose family is in train, about
    10% are held out, never the toneless base itself, so base and tone are both seen, their combination is not. Pictures
    that look like a train picture stay in train.
    """
    chosen = {entry.key: _first_choice(entry) for entry in entries}
    twins = {}
    for bucket in _comparable(entries, chosen):
        for same in _same_pictures(bucket):
            trained = [entry.key for entry in same if chosen[entry.key] == "train"]
            for entry in same if trained else ():
                if chosen[entry.key] != "train":
                    twins[entry.key] = trained[0]
    return Splits({key: "train" if key in twins else split for key, split in chosen.items()}, twins)


def _first_choice(entry: Emoji) -> str:
    drawn = fraction("validation", entry.family) < _VALIDATION_SHARE and entry.family not in _TRAINED_FAMILIES
    if drawn or entry.family in _VALIDATION_FAMILIES:
        return "validation"
    if entry.attributes.get("skin_tone") in _TONES and fraction("heldout", entry.key) < _HELDOUT_SHARE:
        return "heldout"
    return "train"


def _comparable(entries: Iterable[Emoji], chosen: Mapping[str, str]) -> list[list[Emoji]]:
    """Groups within which pictures may look the same, where this matters: one family in one tone, and all flags."""
    buckets = defaultdict(list)
    for entry in entries:
        place = entry.group if entry.group == "Flags" else (entry.family, entry.attributes.get("skin_tone"))
        buckets[place].append(entry)
    return [bucket for bucket in buckets.values() if len({chosen[entry.key] for entry in bucket}) > 1]


def _same_pictures(entries: Sequence[Emoji]) -> list[list[Emoji]]:
    """Divides emoji into groups of equal looks."""
    groups: list[tuple[np.ndarray, list[Emoji]]] = []
    for entry in entries:
        pixels = rasterise(entry.svg, _COMPARED_SIZE, "#ffffff").astype(np.int16)
        for first, members in groups:
            if np.abs(first - pixels).max() <= _TWIN_TOLERANCE:
                members.append(entry)
                break
        else:
            groups.append((pixels, [entry]))
    return [members for _, members in groups]

"""Named selections of OpenMoji: `all`, `skin_tones`, `quickstart` (minutes on a CPU) and `tiny` (tests)."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from nextflow_jax.data.openmoji.attributes import SKIN_TONES
from nextflow_jax.data.openmoji.names import Emoji
from nextflow_jax.data.openmoji.splits import Splits, fraction

_TONED_BASES = 60
_PLAIN_TRAIN = 150
_VALIDATION = 100

_QUICKSTART_FAMILIES = ("moon", "heart", "circle", "chick", "volume")
"""Families that give the quickstart's frames and colour edits; part of its plain pictures."""

_TINY_BASES = 3
_TINY_FAMILIES = {"clock": 4, "moon": 4, "heart": 2}
_TINY_PLAIN = 2
_TINY_VALIDATION = 3


def select_all(entries: Sequence[Emoji], splits: Splits) -> list[Emoji]:
    """Every picture."""
    return list(entries)


def select_quickstart(entries: Sequence[Emoji], splits: Splits) -> list[Emoji]:
    """60 bases in all their skin tones, held-out ones included, 150 other train pictures and 100 validation ones."""
    toned = [entry for base in _heldout_bases(entries, splits)[:_TONED_BASES] for entry in base]
    plain = [entry for family in _QUICKSTART_FAMILIES for entry in entries if entry.family == family]
    plain += [entry for entry in _plain_train(entries, splits) if entry not in plain]
    return [*toned, *plain[:_PLAIN_TRAIN], *_validation(entries, splits)[:_VALIDATION]]


def select_skin_tones(entries: Sequence[Emoji], splits: Splits) -> list[Emoji]:
    """Every base that has all five skin tones, with its tones: 330 times six pictures, 14 bases of them validation."""
    return [entry for base in _complete_bases(entries) for entry in base]


def select_tiny(entries: Sequence[Emoji], splits: Splits) -> list[Emoji]:
    """Three bases with two train tones and one held-out tone each, some of every kind of family, a few others."""
    chosen = []
    for base in _heldout_bases(entries, splits)[:_TINY_BASES]:
        heldout = next(entry for entry in base if splits.of[entry.key] == "heldout")
        chosen += [*[entry for entry in base if splits.of[entry.key] == "train"][:3], heldout]
    for family, count in _TINY_FAMILIES.items():
        chosen += [entry for entry in entries if entry.family == family][:count]
    chosen += [entry for entry in _plain_train(entries, splits) if entry not in chosen][:_TINY_PLAIN]
    return [*chosen, *_validation(entries, splits)[:_TINY_VALIDATION]]


SUBSETS: Mapping[str, Callable[[Sequence[Emoji], Splits], list[Emoji]]] = {
    "all": select_all,
    "skin_tones": select_skin_tones,
    "quickstart": select_quickstart,
    "tiny": select_tiny,
}


def _heldout_bases(entries: Sequence[Emoji], splits: Splits) -> list[list[Emoji]]:
    """The complete bases with at least one tone held out, in an order made by hashing."""
    chosen = [base for base in _complete_bases(entries) if any(splits.of[entry.key] == "heldout" for entry in base)]
    return sorted(chosen, key=lambda base: fraction("subset", base[0].key))


def _complete_bases(entries: Sequence[Emoji]) -> list[list[Emoji]]:
    """Bases, toneless first, that have all five tones."""
    members = defaultdict(list)
    for entry in entries:
        if entry.key == entry.base or entry.attributes["skin_tone"] in SKIN_TONES.values():
            members[entry.base].append(entry)
    return [
        sorted(group, key=lambda entry: entry.key != entry.base)
        for group in members.values()
        if len(group) == 1 + len(SKIN_TONES)
    ]


def _plain_train(entries: Sequence[Emoji], splits: Splits) -> list[Emoji]:
    """Train pictures of things without skin tones, in an order made by hashing."""
    toned = {entry.base for entry in entries if entry.key != entry.base}
    plain = [entry for entry in entries if entry.base not in toned and splits.of[entry.key] == "train"]
    return sorted(plain, key=lambda entry: fraction("subset", entry.key))


def _validation(entries: Sequence[Emoji], splits: Splits) -> list[Emoji]:
    chosen = [entry for entry in entries if splits.of[entry.key] == "validation"]
    return sorted(chosen, key=lambda entry: fraction("subset", entry.key))

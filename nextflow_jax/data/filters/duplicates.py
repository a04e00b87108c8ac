"""Documents that repeat an earlier one: equal hashes, and pictures that look alike, found without comparing all pairs.

Near duplicates are what going through the corpus in order would give, keeping every document that is near to none kept
before: so no two kept documents are near, and every dropped one is near a kept one. The result is exact. Neighbours
are looked up by blocks of bits (G. Manku et al., "Detecting Near-Duplicates for Web Crawling", WWW 2007): of m = d + r
blocks, at least r are equal in hashes that differ in d bits, so for each choice of r blocks only documents that agree
in those are compared.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int, Integer, UInt

from nextflow_jax.data.filters.columns import FingerprintColumns
from nextflow_jax.data.filters.config import DuplicatesConfig
from nextflow_jax.data.filters.hashes import NO_HASH, hash64, mix
from nextflow_jax.data.keys import numpy_generator
from nextflow_jax.errors import UserError

_CHUNK = 1 << 20
"""Pairs of documents compared at once."""
_MOST_PAIRS = 1 << 19
"""Near pairs held at once; where there are more, the documents are done in halves."""
_SORT_COST, _PAIR_COST = 150.0, 15.0
"""Nanoseconds to sort a document into a table, and to compare a pair."""


def repeats(hashes: UInt[np.ndarray, "n"], among: Bool[np.ndarray, "n"], most: int = 1) -> Bool[np.ndarray, "n"]:
    """The documents `among` which `most` earlier ones have the same hash."""
    members = np.flatnonzero(among)
    members = members[np.argsort(hashes[members], kind="stable")]
    ranks = np.arange(len(members)) - _run_starts(hashes[members])
    repeated = np.zeros(len(hashes), bool)
    repeated[members[ranks >= most]] = True
    return repeated


def near_duplicates(
    columns: FingerprintColumns, config: DuplicatesConfig, among: Bool[np.ndarray, "n"]
) -> Bool[np.ndarray, "n"]:
    """The documents `among` that are near an earlier one that is not itself a near duplicate.

    Near are documents of one task with as many pictures, each within `near_distance` bits and `near_colour` of the
    other's at its place, and for the tasks `near_with_text` the same normalised texts.

    Memory: about 100 bytes a document and 100 MB; time: some seconds a million documents at distance 4.

    Raises:
      UserError: there are pictures without perceptual hashes.
    """
    if np.any((columns.pictures != NO_HASH) & (columns.num_pictures == 0)):
        raise UserError("near_distance: the corpus has no perceptual hashes; ingest it with filters.pictures.decode")
    members = np.flatnonzero(among & (columns.num_pictures > 0))
    pictures = _Pictures.of(columns, config, members)
    # Equal fingerprints share one fate; without them, clusters that are left are small.
    first = np.flatnonzero(~repeats(pictures.signatures(), np.ones(len(members), bool)))
    near = np.zeros(len(columns), bool)
    near[members] = True
    near[members[_keep(pictures, _tables(config.near_distance, len(first)), first)]] = False
    return near


@dataclasses.dataclass(frozen=True, eq=False)
class _Pictures:
    """The documents with pictures, in corpus order."""

    group: UInt[np.ndarray, "n"]
    """Only documents with the same one can be near."""
    leading: UInt[np.ndarray, "n"]
    """The perceptual hash of one picture, at the same place in all documents with as many; near ones have near ones."""
    count: Int[np.ndarray, "n"]
    start: Int[np.ndarray, "n"]
    """Where the document's pictures begin in `columns`."""
    columns: FingerprintColumns
    config: DuplicatesConfig

    @classmethod
    def of(
        cls, columns: FingerprintColumns, config: DuplicatesConfig, members: Int[np.ndarray, "members"]
    ) -> "_Pictures":
        start = (np.cumsum(columns.num_pictures, dtype=np.int64) - columns.num_pictures)[members]
        task, count = columns.task[members], columns.num_pictures[members]
        with_text = np.isin(task, np.asarray([hash64(name) for name in config.near_with_text], np.uint64))
        text = np.where(with_text, columns.text[members], np.uint64(0))
        group = mix(task, count.astype(np.uint64), text)
        leading = columns.perceptual[start + _telling_places(columns.perceptual, start, count)]
        return cls(group, leading, count, start, columns, config)

    def signatures(self) -> UInt[np.ndarray, "n"]:
        """One hash of all that nearness depends on."""
        result = self.group.copy()
        for place in range(int(self.count.max(initial=0))):
            own = np.flatnonzero(self.count > place)
            picture = self.start[own] + place
            red, green, blue = self.columns.colours[picture].astype(np.uint64).T
            colour = red << np.uint64(16) | green << np.uint64(8) | blue
            result[own] = mix(result[own], self.columns.perceptual[picture], colour)
        return result

    def near(self, one: Int[np.ndarray, "pairs"], other: Int[np.ndarray, "pairs"]) -> Bool[np.ndarray, "pairs"]:
        """Which pairs are near, by all there is to know of them."""
        near = self.group[one] == self.group[other]
        for place in itertools.count():
            left = np.flatnonzero(near & (self.count[one] > place))
            if not left.size:
                return near
            here, there = self.start[one[left]] + place, self.start[other[left]] + place
            bits = np.bitwise_count(self.columns.perceptual[here] ^ self.columns.perceptual[there])
            colours = self.columns.colours[here].astype(np.int16) - self.columns.colours[there]
            close = np.abs(colours).max(axis=1) <= self.config.near_colour
            near[left] = close & (bits <= self.config.near_distance)

    def sorted_by(
        self, table: np.uint64, members: Int[np.ndarray, "members"]
    ) -> tuple[UInt[np.ndarray, "members"], Int[np.ndarray, "members"]]:
        """(places in the table, members), in the order of the places; near documents of a table share a place."""
        places = (self.leading[members] & table) ^ self.group[members]
        order = np.argsort(places)
        return places[order], members[order]


def _telling_places(
    perceptual: UInt[np.ndarray, "pictures"], start: Int[np.ndarray, "n"], count: Int[np.ndarray, "n"]
) -> Int[np.ndarray, "n"]:
    """For every document, at which place documents with as many pictures have the most different hashes.

    The first pictures of videos are often all black: looked up by those, every video would be compared with all.
    """
    places = np.zeros(len(start), np.int64)
    for number in np.unique(count[count > 1]):
        own = np.flatnonzero(count == number)
        different = [len(_distinct(perceptual[start[own] + place])) for place in range(number)]
        places[own] = np.argmax(different)
    return places


def _keep(
    pictures: _Pictures, tables: tuple[np.uint64, ...], members: Int[np.ndarray, "members"]
) -> Int[np.ndarray, "kept"]:
    """The documents among `members`, which are in order, that are near no kept one before them."""
    pairs = _near_pairs(pictures, tables, members)
    if pairs is not None:
        return _keep_by_pairs(members, *pairs)
    middle = len(members) // 2
    early = _keep(pictures, tables, members[:middle])
    late = members[middle:]
    late = late[~_near_any(pictures, tables, late, early)]
    return np.concatenate([early, _keep(pictures, tables, late)])


def _keep_by_pairs(
    members: Int[np.ndarray, "members"], early: Int[np.ndarray, "pairs"], late: Int[np.ndarray, "pairs"]
) -> Int[np.ndarray, "kept"]:
    """Goes through all near pairs in the order of their later document, when the earlier one's fate is known."""
    dropped: set[int] = set()
    for one, other in zip(early.tolist(), late.tolist()):
        if one not in dropped:
            dropped.add(other)
    return members[~np.isin(members, np.fromiter(dropped, np.int64, len(dropped)))]


def _near_pairs(
    pictures: _Pictures, tables: tuple[np.uint64, ...], members: Int[np.ndarray, "members"]
) -> tuple[Int[np.ndarray, "pairs"], Int[np.ndarray, "pairs"]] | None:
    """(earlier, later) of all near pairs, in the order of the later; None: there are more than _MOST_PAIRS."""
    total = np.int64(len(pictures.group))
    parts, held = [np.empty(0, np.int64)], 0
    for table in tables:
        places, there = pictures.sorted_by(table, members)
        leading = pictures.leading[there]
        ends = _run_starts(places[::-1])
        after = np.arange(1, len(there) + 1)
        for one, other in _ranges(after, len(there) - ends[::-1] - after):
            close = np.bitwise_count(leading[one] ^ leading[other]) <= pictures.config.near_distance
            one, other = there[one[close]], there[other[close]]
            near = pictures.near(one, other)
            one, other = one[near], other[near]
            parts.append(np.maximum(one, other) * total + np.minimum(one, other))
            held += len(one)
            if held > _MOST_PAIRS:
                # Tables find the same pairs; half full, the next ones would end here again.
                parts = [_distinct(np.concatenate(parts))]
                held = len(parts[0])
                if held > _MOST_PAIRS // 2:
                    return None
    late, early = np.divmod(_distinct(np.concatenate(parts)), total)
    return early, late


def _near_any(
    pictures: _Pictures,
    tables: tuple[np.uint64, ...],
    members: Int[np.ndarray, "members"],
    others: Int[np.ndarray, "others"],
) -> Bool[np.ndarray, "members"]:
    """Which of `members` are near any of `others`."""
    near = np.zeros(len(pictures.group), bool)
    for table in tables:
        places, here = pictures.sorted_by(table, members[~near[members]])
        other_places, there = pictures.sorted_by(table, others)
        mine, theirs = pictures.leading[here], pictures.leading[there]
        first = np.searchsorted(other_places, places, side="left")
        for one, other in _ranges(first, np.searchsorted(other_places, places, side="right") - first):
            close = np.bitwise_count(mine[one] ^ theirs[other]) <= pictures.config.near_distance
            one, other = here[one[close]], there[other[close]]
            near[one[pictures.near(one, other)]] = True
    return near[members]


def _ranges(
    first: Int[np.ndarray, "n"], count: Int[np.ndarray, "n"]
) -> Iterator[tuple[Int[np.ndarray, "pairs"], Int[np.ndarray, "pairs"]]]:
    """(i, first[i] + k) for all i and 0 <= k < count[i], about _CHUNK at a time."""
    rows = np.flatnonzero(count)
    ends = np.cumsum(count[rows])
    start = 0
    while start < len(rows):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _CHUNK, side="right")))
        own = rows[start:stop]
        sizes = count[own]
        inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        yield np.repeat(own, sizes), np.repeat(first[own], sizes) + inside
        start = stop


def _distinct(values: Integer[np.ndarray, "n"]) -> Integer[np.ndarray, "distinct"]:
    """The values sorted, each once. np.unique hashes, which takes ten times as long on these."""
    values = np.sort(values)
    return values[_run_starts(values) == np.arange(len(values))]


def _run_starts(values: Integer[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """For sorted values, where the run of equal ones begins that each is in."""
    new = np.ones(len(values), bool)
    new[1:] = values[1:] != values[:-1]
    return np.maximum.accumulate(np.where(new, np.arange(len(values)), 0))


@functools.lru_cache
def _tables(distance: int, documents: int) -> tuple[np.uint64, ...]:
    """Masks of bits such that any two hashes within `distance` agree in all bits of at least one.

    Of the numbers of blocks that do, the one that is quickest on hashes of random bits is taken.
    """

    def cost(blocks: int) -> float:
        agreeing = blocks - distance
        pairs = documents**2 / 2 / 2 ** (64 * agreeing / blocks)
        return math.comb(blocks, agreeing) * (documents * _SORT_COST + pairs * _PAIR_COST)

    blocks = min(range(distance + 1, distance + 5), key=cost)
    # Neighbouring bits of a hash are alike: shuffled, every block tells documents apart.
    bits = numpy_generator(0, "blocks of bits").permutation(64)
    masks = [sum(1 << int(bit) for bit in block) for block in np.array_split(bits, blocks)]
    chosen = itertools.combinations(masks, blocks - distance)
    return tuple(np.uint64(sum(some)) for some in chosen)

"""Pictures of any ratio in batches of one shape each: a bucket is a picture size of the schedule family.

Which bucket global batch n is of, and which pictures are in it, is a pure function of (seed, n): all hosts draw the
same, and resuming needs the number alone.

    In every N batches (N = number of pictures), bucket b comes exactly as often as it has pictures, in a keyed order.
    Within a bucket, batch after batch reads on in an endless sequence that runs through its pictures, shuffled anew.

So after N batches of B rows every picture was shown B times, however small its bucket: what does not fill a batch at
the end of a run through a bucket is carried over into the bucket's next batch, whose other rows begin the next run. A
bucket with fewer pictures than rows shows some of them more than once in a batch.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from nextflow_jax.data.image_files import Size
from nextflow_jax.data.pictures import PictureSet
from nextflow_jax.data.shuffle import shuffled


def nearest_size(picture: Size, sizes: Sequence[Size]) -> Size:
    """The size whose ratio is nearest to the picture's (in logarithms); of equal ratios, the one nearest in area.

    Args:
      picture: height and width in pixels.
      sizes: to choose from.
    """

    def distance(size: Size) -> tuple[float, float]:
        height, width = math.log(size[0] / picture[0]), math.log(size[1] / picture[1])
        # Rounded, because equal ratios of different sides differ in their last bits.
        return round(abs(height - width), 9), abs(height + width)

    return min(sizes, key=distance)


def assign_buckets(pictures: PictureSet, keys: Sequence[str], sizes: Sequence[Size]) -> dict[Size, list[str]]:
    """The pictures of every size, in the order of `sizes`; sizes that are nearest to no picture are left out."""
    buckets: dict[Size, list[str]] = {size: [] for size in sizes}
    for key in keys:
        buckets[nearest_size(pictures.native_size(key), sizes)].append(key)
    return {size: members for size, members in buckets.items() if members}


class BucketBatches:
    """Which pictures make up global batch n, all of one bucket.

    Args:
      buckets: size to the keys of its pictures; none empty.
      seed: of the experiment.
      batch_size: rows of the global batch.
    """

    def __init__(self, buckets: Mapping[Size, Sequence[str]], seed: int, batch_size: int) -> None:
        self._sizes = list(buckets)
        self._keys = [list(keys) for keys in buckets.values()]
        self._ends = np.cumsum([len(keys) for keys in self._keys])
        self._seed = seed
        self._batch_size = batch_size
        self._round = -1

    @property
    def sizes(self) -> list[Size]:
        """The buckets."""
        return self._sizes

    def keys(self, batch: int, part: int, num_parts: int) -> tuple[Size, list[str]]:
        """The bucket of global batch `batch`, and the keys of the pictures in part `part` of `num_parts` of it."""
        number, place = divmod(batch, int(self._ends[-1]))
        bucket, rank = self._draw(number, place)
        members = self._keys[bucket]
        rows = self._batch_size // num_parts
        start = (number * len(members) + rank) * self._batch_size + part * rows
        order = shuffled(
            np.arange(start, start + rows), len(members), self._seed, "bucket pictures", *self._sizes[bucket]
        )
        return self._sizes[bucket], [members[index] for index in order]

    def _draw(self, number: int, place: int) -> tuple[int, int]:
        """(bucket, batches of it that came before in round `number`) of the round's batch `place`."""
        if number != self._round:
            self._drawn, self._ranks = _round_of_buckets(self._ends, self._seed, number)
            self._round = number
        return int(self._drawn[place]), int(self._ranks[place])


def _round_of_buckets(
    ends: Int[np.ndarray, "buckets"], seed: int, number: int
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """The buckets of one round's batches, and how often each came before in it."""
    total = int(ends[-1])
    tickets = shuffled(np.arange(number * total, (number + 1) * total), total, seed, "buckets")
    drawn = np.searchsorted(ends, tickets, side="right")
    order = np.argsort(drawn, kind="stable")
    ranks = np.empty(total, np.int64)
    ranks[order] = np.arange(total) - np.concatenate([[0], ends[:-1]])[drawn[order]]
    return drawn, ranks

"""Batches of pictures: which pictures make up global batch n, as a pure function of (seed, n), and their pixels."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from nextflow_jax.data.buckets import BucketBatches, assign_buckets
from nextflow_jax.data.image_files import Size
from nextflow_jax.data.pictures import BrokenPicture, PictureSet
from nextflow_jax.data.shuffle import shuffled
from nextflow_jax.errors import UserError


class PictureBatches:
    """Runs through the pictures in a new order each epoch; no batch holds a picture twice.

    An epoch has as many batches as fit whole; the pictures left over come in other epochs.

    Args:
      keys: the pictures to draw from.
      seed: of the experiment.
      batch_size: rows of the global batch.

    Raises:
      UserError: fewer pictures than rows.
    """

    def __init__(self, keys: Sequence[str], seed: int, batch_size: int) -> None:
        if batch_size > len(keys):
            raise UserError(
                f"config.train.batch_size = {batch_size} is more than the {len(keys)} training pictures; "
                f"use at most {len(keys)}, or a larger config.pictures.subset"
            )
        self._keys = list(keys)
        self._seed = seed
        self._batch_size = batch_size

    def keys(self, batch: int, part: int, num_parts: int) -> list[str]:
        """Keys of the pictures in part `part` of `num_parts` of global batch `batch`."""
        rows = self._batch_size // num_parts
        epoch, within = divmod(batch, len(self._keys) // self._batch_size)
        start = epoch * len(self._keys) + within * self._batch_size + part * rows
        order = shuffled(np.arange(start, start + rows), len(self._keys), self._seed, "picture batches")
        return [self._keys[index] for index in order]


class OneSize:
    """`PictureBatches` with the interface of BucketBatches: every batch has a size."""

    def __init__(self, batches: PictureBatches, size: Size) -> None:
        self.sizes = [size]
        self._batches = batches

    def keys(self, batch: int, part: int, num_parts: int) -> tuple[Size, list[str]]:
        """The size, and the keys of part `part` of `num_parts` of global batch `batch`."""
        return self.sizes[0], self._batches.keys(batch, part, num_parts)


def picture_order(pictures: PictureSet, sizes: Sequence[Size], seed: int, batch_size: int) -> OneSize | BucketBatches:
    """The training pictures in batches of one size, or of several as each picture's ratio asks.

    Raises:
      UserError: one size and fewer pictures than rows.
    """
    keys = pictures.split("train")
    if len(sizes) == 1:
        return OneSize(PictureBatches(keys, seed, batch_size), sizes[0])
    return BucketBatches(assign_buckets(pictures, keys, sizes), seed, batch_size)


def readable_images(
    pictures: PictureSet, keys: Sequence[str], size: Size | None = None
) -> tuple[list[str], UInt8[np.ndarray, "pictures height width 3"]]:
    """The pixels of pictures, and whose they are: one that cannot be read gives way to the next of its split.

    A batch so stays a pure function of its number and the files. The picture set counts the broken ones, and stops the
    run when they are too many.
    """
    try:
        return list(keys), pictures.images(keys, size)
    except BrokenPicture:
        found = [_first_readable(pictures, key, size) for key in keys]
        return [key for key, _ in found], np.stack([image for _, image in found])


def _first_readable(
    pictures: PictureSet, key: str, size: Size | None
) -> tuple[str, UInt8[np.ndarray, "height width 3"]]:
    members = pictures.split(pictures.info(key).split)
    start = members.index(key)
    for candidate in (*members[start:], *members[:start]):
        try:
            return candidate, pictures.images([candidate], size)[0]
        except BrokenPicture as error:
            problem = error
    raise problem

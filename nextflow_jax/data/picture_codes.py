"""Codes of pictures for extraction: encoded in batches that never change, so that a rerun gives the same bits."""

import collections
import time
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int, UInt8

from nextflow_jax.data.documents import Image
from nextflow_jax.data.keys import numpy_generator, small_seed
from nextflow_jax.data.pictures import PictureSet
from nextflow_jax.data.records import EncodedImage
from nextflow_jax.scales import ScheduleFamily
from nextflow_jax.vision.codec import VisionTokenizerCodec
from nextflow_jax.vision.quantizer import SelfCorrection

_CACHED_CODES = 2**26
"""Input and target codes kept in memory, at 4 bytes each: documents of several tasks show the same pictures."""

Codes = tuple[Int[np.ndarray, "B N"], Int[np.ndarray, "B N"]]
"""(inputs, targets) of a batch of pictures."""


class PictureEncoder:
    """Looks up the codes of pictures, encoding whole batches when they are first asked for.

    A picture always shares its batch with the same others, whichever shard asks, so that even rounding that depends on
    the place in a batch is the same in every run. What self-correction draws depends on (seed, key, draw) alone.
    """

    def __init__(
        self,
        pictures: PictureSet,
        keys: Sequence[str],
        vision_tokenizer: VisionTokenizerCodec,
        batch_size: int,
        seed: int,
    ):
        """Takes the `keys` of all pictures that will be asked for, in any fixed order."""
        self._pictures = pictures
        self._keys = list(keys)
        self._place = {key: place for place, key in enumerate(self._keys)}
        self._tokenizer = vision_tokenizer
        self._batch_size = batch_size
        self._seed = seed
        self._batches: collections.OrderedDict[tuple, Codes] = collections.OrderedDict()
        self.images = 0
        """Pictures encoded so far, each draw counted."""
        self.seconds = 0.0
        """Time that took, decoding and rasterising left out."""

    @property
    def family(self) -> ScheduleFamily:
        """The schedules of the codes."""
        return self._tokenizer.family

    def encode(
        self, image: Image, draw: int, self_correction: SelfCorrection | None, samples_share: float
    ) -> EncodedImage:
        """The indices of a document's picture.

        Args:
          image: of a document; its key is one of those announced.
          draw: number of the self-correction draw.
          self_correction: None gives inputs equal to the targets.
          samples_share: share of pictures whose inputs are corrected at all.
        """
        batch, place = divmod(self._place[image.key], self._batch_size)
        inputs, targets = self._batch(batch, draw, self_correction)
        if self_correction is not None and samples_share < 1:
            plain = numpy_generator(self._seed, "plain picture", image.key, draw).random() >= samples_share
            inputs = targets if plain else inputs
        return EncodedImage(self._pictures.config.size, inputs[place], targets[place], image.role)

    def _batch(self, batch: int, draw: int, self_correction: SelfCorrection | None) -> Codes:
        name = (batch, draw, self_correction)
        if name not in self._batches:
            keys = self._keys[batch * self._batch_size : (batch + 1) * self._batch_size]
            self._batches[name] = self._encode(keys, self._pictures.images(keys), draw, self_correction)
            kept = max(1, _CACHED_CODES // (2 * self._batches[name][0].size))
            while len(self._batches) > kept:
                self._batches.popitem(last=False)
        self._batches.move_to_end(name)
        return self._batches[name]

    def _encode(
        self,
        keys: Sequence[str],
        images: UInt8[np.ndarray, "B H W 3"],
        draw: int,
        self_correction: SelfCorrection | None,
    ) -> Codes:
        start = time.perf_counter()
        random_keys = None
        if self_correction is not None:
            seeds = [small_seed(self._seed, "self-correction", key, draw) for key in keys]
            random_keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
        codes = self._tokenizer.encode(images, random_keys, self_correction)
        self.images += len(keys)
        self.seconds += time.perf_counter() - start
        return codes

"""Codes of pictures for extraction: what self-correction draws for a picture depends on its key and the draw alone."""

import collections
import dataclasses
import time
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int, UInt8

from nextflow_jax.data.documents import Image
from nextflow_jax.data.image_files import Size
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


@dataclasses.dataclass(frozen=True)
class Draw:
    """One of the times that a split is written."""

    number: int = 0
    self_correction: SelfCorrection | None = None
    """None gives inputs equal to the targets."""
    samples_share: float = 1.0
    """Share of pictures whose inputs are corrected at all."""


@dataclasses.dataclass
class Tally:
    """What was encoded of pictures of one size."""

    images: int = 0
    """Each draw counted."""
    seconds: float = 0.0
    """Decoding and rasterising left out."""
    first_images: int = 0
    """Of the first batch."""
    first_seconds: float = 0.0
    """Of the first batch, for which the program is compiled."""

    def add(self, images: int, seconds: float) -> None:
        """Counts a batch."""
        if not self.images:
            self.first_images, self.first_seconds = images, seconds
        self.images += images
        self.seconds += seconds

    @property
    def speed(self) -> float | None:
        """Images a second after the first batch; None where there was no other."""
        later = self.images - self.first_images
        return later / (self.seconds - self.first_seconds) if later else None


class PictureCoder:
    """Encodes batches of pictures and counts them.

    Args:
      vision_tokenizer: makes the codes; a picture's do not depend on what else is in its batch.
      seed: of the self-correction draws.
    """

    def __init__(self, vision_tokenizer: VisionTokenizerCodec, seed: int) -> None:
        self._tokenizer = vision_tokenizer
        self._seed = seed
        self.tallies: dict[Size, Tally] = {}
        """By height and width."""

    @property
    def family(self) -> ScheduleFamily:
        """The schedules of the codes."""
        return self._tokenizer.family

    @property
    def devices(self) -> int:
        """How many batches are encoded at once."""
        return self._tokenizer.devices

    def encode(self, keys: Sequence[str], images: UInt8[np.ndarray, "B H W 3"], draw: Draw) -> Codes:
        """The codes of pictures of one size.

        Args:
          keys: one a picture; what is drawn for it depends on (seed, key, draw) alone.
          images: their pixels.
          draw: which.
        """
        start = time.perf_counter()
        random_keys = None
        if draw.self_correction is not None:
            seeds = [small_seed(self._seed, "self-correction", key, draw.number) for key in keys]
            random_keys = _random_keys(np.asarray(seeds, np.uint32))
        inputs, targets = self._tokenizer.encode(images, random_keys, draw.self_correction)
        if draw.self_correction is not None and draw.samples_share < 1:
            plain = np.asarray([self._is_plain(key, draw) for key in keys])
            inputs = np.where(plain[:, None], targets, inputs)
        tally = self.tallies.setdefault((images.shape[1], images.shape[2]), Tally())
        tally.add(len(keys), time.perf_counter() - start)
        return inputs, targets

    def _is_plain(self, key: str, draw: Draw) -> bool:
        generator = numpy_generator(self._seed, "plain picture", key, draw.number)
        return bool(generator.random() >= draw.samples_share)


_random_keys = jax.jit(jax.vmap(jax.random.key))
"""Seeds to keys; without jit, every call would be traced anew."""


class PictureEncoder:
    """Looks up the codes of a picture set's pictures, encoding whole batches when they are first asked for.

    Args:
      pictures: the set, all of one size.
      keys: of all pictures that will be asked for, in any fixed order.
      coder: makes the codes.
      batch_size: pictures encoded together on each device.
    """

    def __init__(self, pictures: PictureSet, keys: Sequence[str], coder: PictureCoder, batch_size: int) -> None:
        self._pictures = pictures
        self._keys = list(keys)
        self._place = {key: place for place, key in enumerate(self._keys)}
        self._coder = coder
        self._batch_size = batch_size * coder.devices
        self._batches: collections.OrderedDict[tuple[int, Draw], Codes] = collections.OrderedDict()

    def encode(self, image: Image, draw: Draw) -> EncodedImage:
        """The indices of a document's picture; its key is one of those announced."""
        batch, place = divmod(self._place[image.key], self._batch_size)
        inputs, targets = self._batch(batch, draw)
        return EncodedImage(self._pictures.config.size, inputs[place], targets[place], image.role, image.loss)

    def _batch(self, batch: int, draw: Draw) -> Codes:
        name = (batch, draw)
        if name not in self._batches:
            keys = self._keys[batch * self._batch_size : (batch + 1) * self._batch_size]
            self._batches[name] = self._coder.encode(keys, self._pictures.images(keys), draw)
            kept = max(1, _CACHED_CODES // (2 * self._batches[name][0].size))
            while len(self._batches) > kept:
                self._batches.popitem(last=False)
        self._batches.move_to_end(name)
        return self._batches[name]

"""The frozen tokenizer as everyone downstream uses it: uint8 pictures to codes and back, one compilation a size.

Batches of any length are run in chunks of one length a size, so a picture's codes and pixels do not depend on what else
is in its batch, and every size compiles once. Memory is bounded whatever the size: large pictures come fewer at a time,
and the largest are decoded in strips (nextflow_jax/vision/tiled.py).
"""

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int, Key, UInt8

from nextflow_jax.config import to_plain_dict
from nextflow_jax.errors import UserError
from nextflow_jax.scales import ScaleSchedule, ScheduleFamily
from nextflow_jax.vision import residual
from nextflow_jax.vision.quantizer import SelfCorrection
from nextflow_jax.vision.tiled import tiled_decode
from nextflow_jax.vision.tokenizer import VisionTokenizer, VisionTokenizerConfig

Variables = dict[str, Any]

CHUNK_PIXELS = 32 * 256**2
"""Pixels that one device call takes by default: 32 pictures of 256 pixels, 2 of 1024."""

DECODED_PIXELS = 256**2
"""Pixels that one decoding call makes at most: 32 pictures of 32 pixels, one of 256. A call is filled up whatever is
asked, so that a picture does not depend on the batch, and users mostly ask for a few large ones: larger calls would
make them wait for 31 pictures that nobody wants."""

WHOLE_PIXELS = 512**2
"""Largest pictures that are decoded in one piece by default."""


def images_to_float(images: UInt8[Array | np.ndarray, "*B"]) -> Float[Array, "*B"]:
    """uint8 values as float32 in [-1, 1]."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1.0


def images_to_uint8(images: Float[Array | np.ndarray, "*B"]) -> UInt8[Array, "*B"]:
    """Values in [-1, 1], clamped, as uint8."""
    return jnp.round((jnp.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def fingerprint(variables: Variables, config: Any) -> str:
    """Names a model by what it is: SHA-256 over the configuration and every array's name, dtype, shape and bytes.

    Args:
      variables: unboxed collections.
      config: the configuration dataclass.
    """
    digest = hashlib.sha256(json.dumps(to_plain_dict(config), sort_keys=True).encode())
    for name, value in sorted(flatten_dict(variables, sep="/").items()):
        array = np.ascontiguousarray(value)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class PendingPictures:
    """Pictures that the device is making: asked for, not waited for."""

    def __init__(self, chunks: list[list[UInt8[Array, "chunk H W 3"]]], count: int) -> None:
        """Takes the stages of every chunk; `count` of their rows are meant, the rest are padding."""
        self._chunks, self._count = chunks, count
        self._fetched: list[np.ndarray] = []

    def stages(self) -> list[UInt8[np.ndarray, "B H W 3"]]:
        """The pictures, or as they stand after each scale where that was asked for; waits for the device, once."""
        if self._chunks:
            stages = zip(*self._chunks)
            self._fetched = [np.concatenate([np.asarray(part) for part in stage])[: self._count] for stage in stages]
            self._chunks = []
        return self._fetched


class VisionTokenizerCodec:
    """A trained tokenizer, frozen. Inputs and outputs are NumPy; sizes are (height, width) in pixels."""

    def __init__(
        self,
        config: VisionTokenizerConfig,
        variables: Variables,
        chunk: int = 32,
        chunk_pixels: int = CHUNK_PIXELS,
        whole_pixels: int = WHOLE_PIXELS,
        strip_rows: int = 64,
        mesh: jax.sharding.Mesh | None = None,
    ) -> None:
        """Takes unboxed `variables` (collections "params" and "codebook").

        Args:
          config: the architecture.
          variables: trained arrays.
          chunk: pictures in one device call at most.
          chunk_pixels: their pixels together at most (and at most `DECODED_PIXELS` in decoding); a picture larger than
            that comes alone.
          whole_pixels: pictures of more pixels are decoded in strips.
          strip_rows: height of these strips, see `tiled_decode`.
          mesh: of one axis; `encode` runs on all its devices at once, each with a chunk of its own, so that the codes
            do not depend on their number. None: on one device.
        """
        self.config = config
        self.variables = variables
        self._chunk, self._chunk_pixels = chunk, chunk_pixels
        self._whole_pixels, self._strip_rows = whole_pixels, strip_rows
        self._mesh = mesh
        self._module = VisionTokenizer(config)
        encode = self._encode_chunk if self.devices == 1 else self._encode_chunks
        self._encode = jax.jit(encode, static_argnames=("self_correction",))
        self._accumulate = jax.jit(self._accumulate_chunk, static_argnames=("schedule", "every_scale"))
        self._accumulate_until = jax.jit(self._accumulate_until_chunk, static_argnames=("schedule",))
        self._paint = jax.jit(self._paint_chunk, static_argnames=("size",))

    @property
    def devices(self) -> int:
        """Devices that encode."""
        return 1 if self._mesh is None else self._mesh.size

    @property
    def family(self) -> ScheduleFamily:
        """The schedules it was trained on."""
        return self.config.family

    @functools.cached_property
    def codebook(self) -> Float[np.ndarray, "V C"]:
        """What each code adds to the feature map, semantic half first."""
        return np.asarray(self._module.bind(self.variables).quantizer.embedding())

    @functools.cached_property
    def refinement(self) -> residual.Refinement | None:
        """The convolutions after upsampling, as NumPy; None when the tokenizer has none."""
        bound = self._module.bind(self.variables)
        refinement = bound.quantizer.refinement()
        return None if refinement is None else residual.Refinement(*(np.asarray(array) for array in refinement))

    @functools.cached_property
    def fingerprint(self) -> str:
        """See `fingerprint`."""
        return fingerprint(self.variables, self.config)

    def encode(
        self,
        images: UInt8[np.ndarray, "B H W 3"],
        key: Key[Array, ""] | Key[Array, "B"] | None = None,
        self_correction: SelfCorrection | None = None,
    ) -> tuple[Int[np.ndarray, "B N"], Int[np.ndarray, "B N"]]:
        """Codes of pictures: (inputs, targets) int32, equal without self-correction.

        Args:
          images: of a size the family lists.
          key: needed with self-correction; one a picture, or one for all: picture i then uses `fold_in(key, i)`.
          self_correction: draws some of the inputs among near codes; see `Quantizer.encode`.

        Raises:
          UserError: an unsupported size.
        """
        self.family.schedule(images.shape[1:3])
        keys = None
        if self_correction is not None:
            keys = key if key.ndim else jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(len(images)))
        parts = [
            self._encode(self.variables, part, part_keys, self_correction=self_correction)
            for part, part_keys in self._chunks(images, keys, images.shape[1:3], at_once=self.devices)
        ]
        inputs, targets = (np.concatenate([np.asarray(codes) for codes in both]) for both in zip(*parts))
        return inputs[: len(images)], targets[: len(images)]

    def trace_encode(self, size: Sequence[int], self_correction: SelfCorrection | None = None) -> jax.stages.Traced:
        """The program that `encode` runs for pictures of this size, for compiling it ahead of time.

        `variables` may be shapes with shardings, and the devices of the mesh need not be there.
        """
        count = self.pictures_at_once(size)
        rows = None
        if self._mesh is not None:
            rows = jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec(self._mesh.axis_names))
        images = jax.ShapeDtypeStruct((count, *size, 3), jnp.uint8, sharding=rows)
        keys = None
        if self_correction is not None:
            keys = jax.ShapeDtypeStruct((count,), jax.random.key(0).dtype, sharding=rows)
        return self._encode.trace(self.variables, images, keys, self_correction=self_correction)

    def decode(self, codes: Int[np.ndarray, "B N"], size: Sequence[int]) -> UInt8[np.ndarray, "B H W 3"]:
        """Pictures of codes.

        Raises:
          UserError: an unsupported size, the wrong number of codes for it, or codes outside the codebook.
        """
        return self._run_decode(codes, size, every_scale=False)[-1]

    def decode_partial(self, codes: Int[np.ndarray, "B N"], size: Sequence[int]) -> list[UInt8[np.ndarray, "B H W 3"]]:
        """Pictures as they stand after each scale, coarse to fine; the last equals `decode`."""
        return self._run_decode(codes, size, every_scale=True)

    def dispatch(
        self, codes: Int[Array, "B N"], rows: Sequence[int], size: Sequence[int], every_scale: bool = False
    ) -> PendingPictures:
        """As `decode`, or `decode_partial`, of codes that are on the device; nothing is waited for and none is checked.

        Args:
          codes: of a batch, all of one size.
          rows: which of them to make pictures of.
          size: height and width.
          every_scale: also give the picture after each scale.
        """
        chunks = [
            self._decode_chunk(codes[index], size, every_scale)
            for index, _ in self._chunks(np.asarray(rows), None, size, DECODED_PIXELS)
        ]
        return PendingPictures(chunks, len(rows))

    def dispatch_unfinished(
        self, codes: Int[Array, "B N"], rows: Sequence[int], size: Sequence[int], scales: int
    ) -> PendingPictures:
        """As `dispatch`, of pictures whose first `scales` scales are drawn; the codes of the finer ones don't count."""
        schedule = self.family.schedule(size)
        chunks = []
        for index, _ in self._chunks(np.asarray(rows), None, size, DECODED_PIXELS):
            features = self._accumulate_until(self.variables, codes[index], scales - 1, schedule=schedule)
            chunks.append([self._paint(self.variables, features, size=tuple(size))])
        return PendingPictures(chunks, len(rows))

    def accumulate(self, schedule: ScaleSchedule, codes: Int[np.ndarray, "N"]) -> list[Float[np.ndarray, "_ C"]]:
        """What each next scale sees with accumulated inputs (`sequence.Accumulate`), for one picture's codes.

        Entry i: features of scales 1 ... i+1, on the grid of scale i+2; the last entry on the final grid.
        """
        maps = residual.accumulate(schedule, self.codebook[codes], self.refinement)
        features = (residual.next_scale_features(schedule, k, accumulated) for k, accumulated in enumerate(maps))
        return [cells.reshape(-1, cells.shape[-1]) for cells in features]

    def _run_decode(
        self, codes: Int[np.ndarray, "B N"], size: Sequence[int], every_scale: bool
    ) -> list[UInt8[np.ndarray, "B H W 3"]]:
        schedule = self.family.schedule(size)
        if codes.ndim != 2 or codes.shape[1] != schedule.num_tokens:
            raise UserError(
                f"codes {codes.shape}: a picture of {size[0]}x{size[1]} has {schedule.num_tokens} codes; "
                "give an array [pictures, codes]"
            )
        if codes.size and (codes.min() < 0 or codes.max() >= self.config.quantizer.codes):
            raise UserError(
                f"codes range over {codes.min()} ... {codes.max()}: the codebook has codes 0 ... "
                f"{self.config.quantizer.codes - 1}; subtract the vocabulary's vision offset"
            )
        parts = []
        for part, _ in self._chunks(codes, None, size, DECODED_PIXELS):
            parts.append([np.asarray(pictures) for pictures in self._decode_chunk(part, size, every_scale)])
        return [np.concatenate(scale)[: len(codes)] for scale in zip(*parts)]

    def _decode_chunk(
        self, codes: Int[Array | np.ndarray, "B N"], size: Sequence[int], every_scale: bool
    ) -> list[UInt8[Array, "B H W 3"]]:
        """Pictures of one chunk, on the device, not waited for."""
        schedule = self.family.schedule(size)
        maps = self._accumulate(self.variables, codes, schedule=schedule, every_scale=every_scale)
        return [self._paint(self.variables, features, size=tuple(size)) for features in maps]

    def _chunks(
        self,
        rows: np.ndarray,
        keys: Key[Array, "B"] | None,
        size: Sequence[int],
        most_pixels: int | float = math.inf,
        at_once: int = 1,
    ) -> Iterator[tuple[np.ndarray, Key[Array, "chunk"] | None]]:
        """Equal chunks of the rows (and their keys), the last one filled up by repeating row 0 of the chunk.

        Their length depends on `size`, that of the pictures, alone; `at_once` of them come together.
        """
        chunk = at_once * self._chunk_length(size, most_pixels)
        for start in range(0, len(rows), chunk):
            index = np.arange(start, start + chunk)
            index = np.where(index < len(rows), index, start)
            yield rows[index], None if keys is None else keys[index]

    def pictures_at_once(self, size: Sequence[int]) -> int:
        """Pictures of this size that one call encodes, on all devices."""
        return self._chunk_length(size) * self.devices

    def _chunk_length(self, size: Sequence[int], most_pixels: int | float = math.inf) -> int:
        """Pictures of this size in one device call."""
        pixels = min(self._chunk_pixels, most_pixels)
        return max(1, min(self._chunk, int(pixels // (size[0] * size[1]))))

    def _encode_chunk(
        self,
        variables: Variables,
        images: UInt8[Array, "B H W 3"],
        keys: Key[Array, "B"] | None,
        self_correction: SelfCorrection | None,
    ) -> tuple[Int[Array, "B N"], Int[Array, "B N"]]:
        return self._module.apply(variables, images_to_float(images), keys, self_correction, method="encode")

    def _encode_chunks(
        self,
        variables: Variables,
        images: UInt8[Array, "B H W 3"],
        keys: Key[Array, "B"] | None,
        self_correction: SelfCorrection | None,
    ) -> tuple[Int[Array, "B N"], Int[Array, "B N"]]:
        """As `_encode_chunk`, of a chunk on each device."""
        encode = functools.partial(self._encode_chunk, self_correction=self_correction)
        rows = jax.sharding.PartitionSpec(self._mesh.axis_names)
        specs = (jax.sharding.PartitionSpec(), rows, rows)
        return jax.shard_map(encode, mesh=self._mesh, in_specs=specs, out_specs=rows, check_vma=False)(
            variables, images, keys
        )

    def _accumulate_chunk(
        self, variables: Variables, codes: Int[Array, "B N"], schedule: ScaleSchedule, every_scale: bool
    ) -> list[Float[Array, "B Y X C"]]:
        """The feature maps to make pictures of: after every scale, or after the last one."""
        maps = self._module.apply(variables, codes, schedule, method="accumulate")
        return maps if every_scale else maps[-1:]

    def _accumulate_until_chunk(
        self, variables: Variables, codes: Int[Array, "B N"], scale: Int[Array, ""], schedule: ScaleSchedule
    ) -> Float[Array, "B Y X C"]:
        """The feature map after one scale, counted from 0 and traced: one compilation for all."""
        return jnp.stack(self._module.apply(variables, codes, schedule, method="accumulate"))[scale]

    def _paint_chunk(
        self, variables: Variables, features: Float[Array, "B Y X C"], size: tuple[int, int]
    ) -> UInt8[Array, "B H W 3"]:
        if size[0] * size[1] <= self._whole_pixels:
            return images_to_uint8(self._module.apply(variables, features, method="decode_features"))
        latents = self._module.apply(variables, features, method="decoder_latents")
        decoder, dtype = variables["params"]["pixel_decoder"], jnp.dtype(self.config.dtype)
        return images_to_uint8(tiled_decode(self.config.pixel, dtype, decoder, latents, self._strip_rows))

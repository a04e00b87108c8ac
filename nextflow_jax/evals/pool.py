"""Every picture of a data set with its reconstruction: what generated pictures are compared with."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from nextflow_jax.data.pictures import PictureInfo, PictureSet


@runtime_checkable
class Codec(Protocol):
    """The frozen vision tokenizer, as far as evaluation uses it (nextflow_jax/vision/codec.py)."""

    def encode(self, images: UInt8[np.ndarray, "B height width 3"]) -> tuple[np.ndarray, np.ndarray]:
        """(input, target) codes [B N]; equal without self-correction."""

    def decode(self, codes: Int[np.ndarray, "B N"], size: tuple[int, int]) -> UInt8[np.ndarray, "B height width 3"]:
        """The pictures of all scales' codes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """All pictures of a data set, train, validation and held-out, in its order (R of them)."""

    infos: Sequence[PictureInfo]
    images: UInt8[np.ndarray, "R height width 3"]
    codes: Int[np.ndarray, "R N"]
    copies: UInt8[np.ndarray, "R height width 3"]
    """The pictures rebuilt from their codes."""
    rows: Mapping[str, int]
    """Key of a picture -> its index."""

    def indices(self, keys: Sequence[str]) -> Int[np.ndarray, "keys"]:
        """Where pictures lie in the pool."""
        return np.array([self.rows[key] for key in keys], np.int64)

    @property
    def bases(self) -> list[str]:
        """The base of each picture: its key without the skin tone."""
        return [info.base for info in self.infos]


def make_pool(pictures: PictureSet, codec: Codec) -> Pool:
    """Rebuilds every picture of `pictures` from its codes."""
    images = pictures.images(pictures.keys())
    _, codes = codec.encode(images)
    rows = {key: row for row, key in enumerate(pictures.keys())}
    return Pool(pictures.infos(), images, codes, codec.decode(codes, pictures.config.size), rows)

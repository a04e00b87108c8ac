"""Captioned pictures with splits: what every data set of pictures offers to training, extraction and evaluation."""

import dataclasses
import functools
import hashlib
import importlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from nextflow_jax.config import Fault, choose, preflight
from nextflow_jax.errors import UserError

SPLITS = ("train", "validation", "heldout")
"""`validation`: families never trained on; `heldout`: unseen combinations of a base and an attribute both seen."""


@dataclasses.dataclass(frozen=True)
class PicturesConfig:
    """Which pictures, at which size."""

    name: str = "openmoji"
    root: str = "data/openmoji"
    """Folder that the data set is built in, when it is not there yet."""
    size: tuple[int, int] = (32, 32)
    """Height and width in pixels."""
    background: str = "#ffffff"
    """Colour behind the picture, #rrggbb."""
    subset: str = "quickstart"
    languages: tuple[str, ...] = ("en",)
    """Languages of the captions, ISO 639-1; the first is the main one."""

    def faults(self) -> Iterator[Fault]:
        """Yields the rules that the fields break."""
        if min(self.size) < 1:
            yield Fault("size", self.size, "height and width are at least 1 pixel", "set e.g. (32, 32)")
        if not re.fullmatch("#[0-9a-fA-F]{6}", self.background):
            yield Fault("background", self.background, "a colour is written #rrggbb", "set e.g. #ffffff")
        if not self.languages or len(set(self.languages)) != len(self.languages):
            yield Fault("languages", self.languages, "at least one language, each once", "set e.g. ('en',)")


@dataclasses.dataclass(frozen=True)
class PictureInfo:
    """All that is known of a picture except its pixels."""

    key: str
    split: str
    captions: Mapping[str, str]
    """Language to caption, for the configured languages, in their order."""
    group: str
    subgroup: str
    base: str
    """Key of the picture without the skin tone; the picture's own key where it has none."""
    family: str
    """Pictures that differ only in attributes share it; a family is never divided between train and validation."""
    attributes: Mapping[str, str]
    """Attribute name to value, e.g. {"skin_tone": "dark", "gender": "female"}; a neutral one is left out."""
    pixels: str
    """Hash of the pixels: equal exactly for pictures that look the same at this size."""


@dataclasses.dataclass(frozen=True)
class Picture(PictureInfo):
    """A picture with its pixels."""

    image: UInt8[np.ndarray, "height width 3"]


class PictureSet:
    """Pictures by key, in a fixed order; pixels are read when a picture is asked for, all else is in memory.

    Args:
      config: what was opened.
      infos: one entry a picture, in the order of the data set.
      read_image: position in `infos` -> uint8 [height, width, 3].
      metadata: facts about the data set as a whole, JSON-ready: `sources`, `train_twins`, ...
    """

    def __init__(
        self,
        config: PicturesConfig,
        infos: Sequence[PictureInfo],
        read_image: Callable[[int], UInt8[np.ndarray, "height width 3"]],
        metadata: Mapping[str, Any],
    ):
        self.config = config
        self.metadata = metadata
        self._infos = {info.key: info for info in infos}
        self._positions = {info.key: position for position, info in enumerate(infos)}
        self._read_image = read_image

    def __len__(self) -> int:
        return len(self._infos)

    def __contains__(self, key: str) -> bool:
        return key in self._infos

    def __iter__(self) -> Iterator[Picture]:
        return (self[key] for key in self._infos)

    def __getitem__(self, key: str) -> Picture:
        info = self.info(key)
        return Picture(**vars(info), image=self._read_image(self._positions[key]))

    def keys(self) -> list[str]:
        """All keys, in the order of the data set."""
        return list(self._infos)

    def info(self, key: str) -> PictureInfo:
        """What is known of a picture, without reading its pixels."""
        if key not in self._infos:
            raise KeyError(f"no picture {key!r} among the {len(self)} of {self.config.name}:{self.config.subset}")
        return self._infos[key]

    def infos(self) -> list[PictureInfo]:
        """What is known of every picture, in the order of the data set."""
        return list(self._infos.values())

    def split(self, name: str) -> list[str]:
        """The keys of one of SPLITS, in the order of the data set."""
        if name not in SPLITS:
            raise UserError(f"split {name!r} is not known; splits are {', '.join(SPLITS)}")
        return [key for key, info in self._infos.items() if info.split == name]

    def images(self, keys: Sequence[str]) -> UInt8[np.ndarray, "pictures height width 3"]:
        """The pixels of several pictures, stacked."""
        height, width = self.config.size
        batch = np.empty((len(keys), height, width, 3), np.uint8)
        for row, key in enumerate(keys):
            batch[row] = self._read_image(self._positions[self.info(key).key])
        return batch

    @functools.cached_property
    def twins(self) -> dict[str, tuple[str, ...]]:
        """Key to the keys of all other pictures with exactly its pixels; without an entry where there are none."""
        same = defaultdict(list)
        for info in self._infos.values():
            same[info.pixels].append(info.key)
        return {key: tuple(k for k in keys if k != key) for keys in same.values() if len(keys) > 1 for key in keys}

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of every picture's pixels, captions, split and attributes."""
        facts = [dataclasses.asdict(info) for info in self._infos.values()]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def open_pictures(config: PicturesConfig) -> PictureSet:
    """Opens the configured pictures; builds them first when `config.root` does not hold them yet.

    Raises:
      UserError: an unknown data set, subset or language, a bad size or colour, or a package that is not installed.
    """
    preflight(config, "config.pictures")
    return choose("config.pictures.name", config.name, SOURCES)(config)


def _opener(module: str, function: str, extra: str) -> Callable[[PicturesConfig], PictureSet]:
    """The function that opens a data set, imported when it is called: each data set needs packages of its own."""

    def open_set(config: PicturesConfig) -> PictureSet:
        try:
            found = getattr(importlib.import_module(f"nextflow_jax.data.{module}"), function)
        except ImportError as error:
            needs = f"pictures {config.name!r} need {error.name}, which is not installed"
            raise UserError(f"{needs}; pip install 'nextflow_jax[{extra}]'") from error
        return found(config)

    return open_set


SOURCES: dict[str, Callable[[PicturesConfig], PictureSet]] = {
    "openmoji": _opener("openmoji.builder", "open_openmoji", "openmoji"),
    "photographs": _opener("photographs", "open_photographs", "photographs"),
}
"""Data sets by name."""

"""Captioned pictures with splits: what every data set of pictures offers to training, extraction and evaluation."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import importlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from nextflow_jax.config import Fault, choose, preflight
from nextflow_jax.data.image_files import ImageLimits, Size
from nextflow_jax.errors import UserError

CORPUS = "corpus"
"""In the place of a data set's name: documents that `nextflow_jax.data.ingest` wrote, which are no picture set."""

SPLITS = ("train", "validation", "heldout")
"""`validation`: families never trained on; `heldout`: unseen combinations of a base and an attribute both seen."""


@dataclasses.dataclass(frozen=True)
class FolderConfig:
    """Of `name = "folder"`: which of the user's files are refused, and how the rest is divided."""

    validation_share: float = 0.05
    """Drawn by hashing file names, so that it stays when files are added."""
    max_failed_share: float = 0.01
    """Share of the image files that may be refused; a run with more stops."""
    max_files: int = 1_000_000
    """Every file's header is read when the folder is opened."""
    limits: ImageLimits = ImageLimits()

    def faults(self) -> Iterator[Fault]:
        """Yields the rules that the fields break."""
        for name in ("validation_share", "max_failed_share"):
            if not 0 <= getattr(self, name) <= 1:
                yield Fault(name, getattr(self, name), "is a share", "use a number from 0 to 1")
        if self.max_files < 1:
            yield Fault("max_files", self.max_files, "must be at least 1", "use e.g. 1_000_000")


@dataclasses.dataclass(frozen=True)
class PicturesConfig:
    """Which pictures, at which size."""

    name: str = "openmoji"
    root: str = "data/openmoji"
    """Folder that the data set is built in, when it is not there yet; of "folder": where the image files are; of
    "corpus": what nextflow_jax.data.ingest wrote."""
    size: tuple[int, int] = (32, 32)
    """Height and width in pixels."""
    background: str = "#ffffff"
    """Colour behind the picture, #rrggbb."""
    subset: str = "quickstart"
    languages: tuple[str, ...] = ("en",)
    """Languages of the captions, ISO 639-1; the first is the main one."""
    folder: FolderConfig = FolderConfig()

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


class BrokenPicture(UserError):
    """A picture that turned out to be unreadable when its pixels were asked for."""


class PictureSet:
    """Pictures by key, in a fixed order; pixels are read when a picture is asked for, all else is in memory.

    Args:
      config: what was opened.
      infos: one entry a picture, in the order of the data set.
      read_image: position in `infos` -> uint8 [height, width, 3].
      metadata: facts about the data set as a whole, JSON-ready: `sources`, `train_twins`, ...
      native_sizes: height and width of every picture as it came; `config.size` when None.
      read_sized: (position, size) -> uint8 of that size, where other sizes than `config.size` can be read. Raises
        BrokenPicture; only such sets have broken pictures.
    """

    def __init__(
        self,
        config: PicturesConfig,
        infos: Sequence[PictureInfo],
        read_image: Callable[[int], UInt8[np.ndarray, "height width 3"]],
        metadata: Mapping[str, Any],
        native_sizes: Sequence[Size] | None = None,
        read_sized: Callable[[int, Size], UInt8[np.ndarray, "height width 3"]] | None = None,
    ):
        self.config = config
        self.metadata = metadata
        self._native_sizes = native_sizes
        self._read_sized = read_sized
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

    def native_size(self, key: str) -> Size:
        """Height and width of the picture as it came, before any cropping and resizing."""
        position = self._positions[self.info(key).key]
        return self.config.size if self._native_sizes is None else self._native_sizes[position]

    def images(self, keys: Sequence[str], size: Size | None = None) -> UInt8[np.ndarray, "pictures height width 3"]:
        """The pixels of several pictures, stacked.

        Args:
          keys: which.
          size: height and width; `config.size` when None.

        Raises:
          UserError: the data set has no other size than `config.size`; BrokenPicture: a picture cannot be read.
        """
        size = self.config.size if size is None else tuple(size)
        if size != self.config.size and self._read_sized is None:
            raise UserError(
                f"config.pictures.name {self.config.name!r} has pictures of {self.config.size} pixels, not {size}; "
                "pictures of several sizes come from 'folder'"
            )
        batch = np.empty((len(keys), *size, 3), np.uint8)
        positions = [self._positions[self.info(key).key] for key in keys]
        if self._read_sized is None:
            for row, position in enumerate(positions):
                batch[row] = self._read_image(position)
        else:
            read = functools.partial(self._read_sized, size=size)
            for row, image in enumerate(_readers().map(read, positions)):
                batch[row] = image
        return batch

    def without_broken(self) -> "PictureSet":
        """The pictures that can be read; looks at every one where any may be broken.

        Raises:
          UserError: more are broken than the configuration allows.
        """
        if self._read_sized is None:
            return self
        good = [position for position, key in enumerate(self._infos) if not self._is_broken(key)]
        infos = self.infos()
        native = None if self._native_sizes is None else [self._native_sizes[position] for position in good]
        return PictureSet(
            self.config,
            [infos[position] for position in good],
            lambda position: self._read_image(good[position]),
            self.metadata,
            native,
            lambda position, size: self._read_sized(good[position], size),
        )

    def _is_broken(self, key: str) -> bool:
        try:
            self.images([key])
        except BrokenPicture:
            return True
        return False

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


@functools.cache
def _readers() -> concurrent.futures.ThreadPoolExecutor:
    """Threads that decode files; Pillow lets others run meanwhile."""
    return concurrent.futures.ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="nextflow_jax-pictures")


def open_pictures(config: PicturesConfig) -> PictureSet:
    """Opens the configured pictures; builds them first when `config.root` does not hold them yet.

    Raises:
      UserError: an unknown data set, subset or language, a bad size or colour, or a package that is not installed.
    """
    preflight(config, "config.pictures")
    if config.name == CORPUS:
        raise UserError(
            f"config.pictures.name = {CORPUS!r}: a corpus is for nextflow_jax.extract; what trains on or evaluates "
            f"pictures needs one of {', '.join(SOURCES)}"
        )
    return choose("config.pictures.name", config.name, SOURCES)(config)


def _opener(module: str, function: str, extra: str = "") -> Callable[[PicturesConfig], PictureSet]:
    """The function that opens a data set, imported when it is called: each data set needs packages of its own."""

    def open_set(config: PicturesConfig) -> PictureSet:
        try:
            found = getattr(importlib.import_module(f"nextflow_jax.data.{module}"), function)
        except ImportError as error:
            needs = f"pictures {config.name!r} need {error.name}, which is not installed"
            package = f"nextflow_jax[{extra}]" if extra else "nextflow_jax"
            raise UserError(f"{needs}; pip install '{package}'") from error
        return found(config)

    return open_set


SOURCES: dict[str, Callable[[PicturesConfig], PictureSet]] = {
    "openmoji": _opener("openmoji.builder", "open_openmoji", "openmoji"),
    "photographs": _opener("photographs", "open_photographs", "photographs"),
    "folder": _opener("folder", "open_folder"),
}
"""Data sets by name."""

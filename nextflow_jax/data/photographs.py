"""The photographs that scikit-image and scikit-learn bring along, cut into crops: natural pictures without a download.

Ten colour photographs; three of them, whole, are the validation split, so no crop of it shows anything trained on. Left
out are grey pictures (the tokenizer is to learn colour), drawings, and the second picture of the stereo pair. A crop is
a window of the wanted ratio: the largest that fits, and 1/2, 1/3, 1/4, 1/6 of that, on a grid of half or whole steps.
"""

import dataclasses
import hashlib
import importlib.metadata
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import skimage
import sklearn.datasets
from jaxtyping import UInt8
from PIL import Image

from nextflow_jax.config import choose
from nextflow_jax.data.pictures import PictureInfo, PicturesConfig, PictureSet
from nextflow_jax.errors import UserError

LANGUAGE = "en"


@dataclasses.dataclass(frozen=True)
class Photograph:
    """One photograph of a package."""

    package: str
    file: str
    split: str
    caption: str

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.file.partition(".")[0]


PHOTOGRAPHS = (
    Photograph("scikit-image", "astronaut.png", "train", "an astronaut in an orange suit in front of a flag"),
    Photograph("scikit-image", "chelsea.png", "train", "the face of a tabby cat"),
    Photograph("scikit-image", "hubble_deep_field.jpg", "train", "many galaxies in a black sky"),
    Photograph("scikit-image", "ihc.png", "train", "brown and blue stained tissue under a microscope"),
    Photograph("scikit-image", "motorcycle_left.png", "train", "a red motorcycle in a garage"),
    Photograph("scikit-image", "retina.jpg", "train", "the retina of a human eye"),
    Photograph("scikit-learn", "china.jpg", "train", "a Chinese temple with a golden roof"),
    Photograph("scikit-image", "coffee.png", "validation", "a red cup of coffee on a wooden table"),
    Photograph("scikit-image", "rocket.jpg", "validation", "a white rocket on its launch pad at dusk"),
    Photograph("scikit-learn", "flower.jpg", "validation", "a pink flower in front of green leaves"),
)

FOLDERS: Mapping[str, pathlib.Path] = {
    "scikit-image": pathlib.Path(skimage.__file__).parent / "data",
    "scikit-learn": pathlib.Path(sklearn.datasets.__file__).parent / "images",
}


@dataclasses.dataclass(frozen=True)
class Cutting:
    """Which crops of a photograph there are."""

    parts: tuple[int, ...]
    """A window is 1/part of the largest one."""
    steps: int
    """Steps of the grid a window: 1 = windows side by side, 2 = half overlapping."""


SUBSETS = {
    "all": Cutting((1, 2, 3, 4, 6), 2),
    "quickstart": Cutting((1, 2, 3, 4, 6), 1),
    "tiny": Cutting((1, 2), 1),
}

PLACES = (("the top left", "the top", "the top right"), ("the left", "the middle", "the right"),
          ("the bottom left", "the bottom", "the bottom right"))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Window:
    """A crop's place in its photograph, in pixels."""

    part: int
    row: int
    column: int
    box: tuple[int, int, int, int]
    """Left, top, right, bottom."""


def windows(photograph: tuple[int, int], size: tuple[int, int], cutting: Cutting) -> Iterator[Window]:
    """The crops of a photograph of (height, width) pixels with the ratio of `size`, none smaller than `size`."""
    zoom = min(photograph[0] / size[0], photograph[1] / size[1])
    for part in cutting.parts:
        sides = [int(side * zoom / part) for side in size]
        if min(side - wanted for side, wanted in zip(sides, size)) < 0:
            continue
        counts = [(whole - side) * cutting.steps // side + 1 for whole, side in zip(photograph, sides)]
        for row in range(counts[0]):
            for column in range(counts[1]):
                top, left = row * sides[0] // cutting.steps, column * sides[1] // cutting.steps
                yield Window(part, row, column, (left, top, left + sides[1], top + sides[0]))


def open_photographs(config: PicturesConfig) -> PictureSet:
    """Cuts all crops at `config.size`, which takes a second and keeps them in memory; deterministic.

    Subsets: "all" (half overlapping), "quickstart" (side by side), "tiny" (large ones only). The only language is
    English; `root` and `background` have no meaning here.

    Raises:
      UserError: an unknown subset or language, or a size that leaves no crop of a photograph.
    """
    cutting = choose("config.pictures.subset", config.subset, SUBSETS)
    if config.languages != (LANGUAGE,):
        raise UserError(
            f"config.pictures.languages = {config.languages}: the photographs' captions are ('{LANGUAGE}',)"
        )
    infos, crops = [], []
    for photograph in PHOTOGRAPHS:
        picture = read_photograph(photograph)
        before = len(infos)
        for window in windows(picture.size[::-1], config.size, cutting):
            crop = _cut(picture, window, config.size)
            infos.append(_info(photograph, picture.size, window, crop))
            crops.append(crop)
        if len(infos) == before:
            raise UserError(
                f"config.pictures.size = {config.size}: larger than the photograph {photograph.file}, "
                f"{picture.size[1]}x{picture.size[0]}; use smaller sides"
            )
    sources = {name: importlib.metadata.version(name) for name in FOLDERS}
    return PictureSet(config, infos, crops.__getitem__, {"sources": sources, "train_twins": {}})


def read_photograph(photograph: Photograph) -> Image.Image:
    """The photograph, RGB.

    Raises:
      UserError: the installed package does not have it.
    """
    path = FOLDERS[photograph.package] / photograph.file
    if not path.is_file():
        raise UserError(
            f"{path} is missing: {photograph.package} {importlib.metadata.version(photograph.package)} does not bring "
            f"{photograph.file}; install the version of launch/constraints.txt"
        )
    return Image.open(path).convert("RGB")


def _cut(picture: Image.Image, window: Window, size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    return np.asarray(picture.resize(size[::-1], Image.Resampling.LANCZOS, box=window.box))


def _info(
    photograph: Photograph, size: tuple[int, int], window: Window, crop: UInt8[np.ndarray, "height width 3"]
) -> PictureInfo:
    key = f"{photograph.name}/{window.part}/{window.row}/{window.column}"
    left, top, right, bottom = window.box
    row, column = (
        int(3 * middle / (2 * whole)) for middle, whole in ((top + bottom, size[1]), (left + right, size[0]))
    )
    place = "" if window.part == 1 else f"{PLACES[row][column]} of "
    return PictureInfo(
        key=key,
        split=photograph.split,
        captions={LANGUAGE: place + photograph.caption},
        group="photographs",
        subgroup=photograph.name,
        base=key,
        family=photograph.name,
        attributes={},
        pixels=hashlib.blake2b(crop.tobytes(), digest_size=12).hexdigest(),
    )

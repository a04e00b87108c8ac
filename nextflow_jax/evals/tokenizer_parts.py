"""Measuring a vision tokenizer on a split of pictures, size after size, in batches: memory does not grow with them."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from nextflow_jax.data.buckets import nearest_size
from nextflow_jax.data.keys import numpy_generator
from nextflow_jax.data.pictures import BrokenPicture, PictureSet
from nextflow_jax.evals.config import TokenizerEvaluationConfig
from nextflow_jax.evals.judges import Judges
from nextflow_jax.evals.outcome import Outcome, json_numbers, spread
from nextflow_jax.evals.rebuilt import Rebuilt
from nextflow_jax.vision.codec import VisionTokenizerCodec

Size = tuple[int, int]

SUFFIXES = {"train": "train", "validation": "val", "heldout": "heldout"}
"""Split -> how its figures end in metrics.json."""
FIGURES = ("psnr", "ssim", "lpips", "rfid", "codebook_usage", "perplexity", "count", "broken")
MAIN_SPLIT = "train"
"""Its codebook figures stand in metrics.json without a suffix: a codebook is to be filled by what it is trained on."""
SHOWN_SIDE, STAGE_SIDE = 256, 128
"""Longest side, in pixels, of what is kept for the report: pictures, and their states after each scale."""
ERROR_GAIN = 4
"""Absolute errors are drawn this many times brighter."""


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizerSubject:
    """What is measured: a tokenizer, on these pictures at these sizes, by these judges."""

    codec: VisionTokenizerCodec
    pictures: PictureSet
    sizes: Sequence[Size]
    judges: Judges
    config: TokenizerEvaluationConfig
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    """Told (what is measured, pictures so far, pictures in all)."""


class _Batch(NamedTuple):
    """Pictures of one size that could be read, rebuilt."""

    keys: list[str]
    originals: UInt8[np.ndarray, "B H W 3"]
    copies: UInt8[np.ndarray, "B H W 3"]
    codes: Int[np.ndarray, "B N"]


def measure_split(subject: TokenizerSubject, split: str) -> Outcome:
    """All figures of a split, and some of its pictures; those of each size and scale are in the details."""
    by_size = _keys_by_size(subject, split)
    places = [(size, key) for size, keys in by_size.items() for key in keys]
    gallery = _Gallery(subject, split, {places[i] for i in spread(len(places), subject.config.shown)})
    whole, sizes, done = _nothing(subject), {}, 0
    for size, keys in by_size.items():
        rebuilt, schedule = _nothing(subject), subject.codec.family.schedule(size)
        for wanted in _chunks(keys, subject.config.batch_size):
            batch = _rebuild(subject, wanted, size)
            if batch is not None:
                rebuilt.add(batch.originals, batch.copies, batch.codes, schedule)
                scores = {name: values[-len(batch.keys) :] for name, values in rebuilt.scores.items()}
                gallery.add(batch, size, scores)
            done += len(wanted)
            subject.progress(f"{split} pictures rebuilt", done, len(places))
        sizes[name_of(size)] = json_numbers(_suffixed(rebuilt.figures(), split))
        whole.merge(rebuilt)
    figures = whole.figures()
    if whole.count < len(places):
        figures["broken"] = float(len(places) - whole.count)
    return Outcome(
        metrics=_suffixed(figures, split),
        records=gallery.records,
        arrays=gallery.stacked(),
        details={
            "sizes": sizes,
            "scales": {SUFFIXES[split]: whole.codes.scales()},
            "left_out": dict(subject.judges.left_out),
        },
    )


def nearest_sizes(native: Size, sizes: Sequence[Size]) -> list[Size]:
    """Those of `sizes` (height, width) whose ratio is the nearest to that of `native`: one at every resolution."""
    best = nearest_size(native, sizes)
    return [size for size in sizes if Fraction(*size) == Fraction(*best)]


def name_of(size: Size) -> str:
    """A size in files: HEIGHTxWIDTH."""
    return f"{size[0]}x{size[1]}"


def metric_name(figure: str, split: str) -> str:
    """What a figure of a split is called in metrics.json."""
    if split == MAIN_SPLIT and figure in ("codebook_usage", "perplexity"):
        return figure
    return f"{figure}_{SUFFIXES[split]}"


class _Gallery:
    """Pictures for the report: originals, copies, errors and the copies after each scale, small enough for a page."""

    def __init__(self, subject: TokenizerSubject, split: str, wanted: Collection[tuple[Size, str]]) -> None:
        """Takes the (size, key) of the pictures to keep."""
        self._subject = subject
        self._split = split
        self._wanted = wanted
        # One picture at a time, for it is decoded as often as it has scales.
        self._codec = VisionTokenizerCodec(subject.codec.config, subject.codec.variables, chunk=1)
        self._images: dict[str, list[np.ndarray]] = defaultdict(list)
        self.records: list[dict[str, Any]] = []

    def add(self, batch: _Batch, size: Size, scores: Mapping[str, Sequence[float]]) -> None:
        """Keeps the pictures of a batch that are wanted."""
        for row, key in enumerate(batch.keys):
            if (size, key) in self._wanted:
                self._keep(batch, row, size, {name: values[row] for name, values in scores.items()})

    def stacked(self) -> dict[str, np.ndarray]:
        """Pictures of each kind and size: "original_64x64" [n, h, w, 3], "stages_64x64" [n, K, h, w, 3]."""
        return {name: np.stack(images) for name, images in self._images.items()}

    def _keep(self, batch: _Batch, row: int, size: Size, scores: Mapping[str, float]) -> None:
        name, key, pictures = name_of(size), batch.keys[row], self._subject.pictures
        original, copy = batch.originals[row], batch.copies[row]
        error = np.minimum(ERROR_GAIN * np.abs(original.astype(np.int32) - copy), 255).astype(np.uint8)
        stages = self._codec.decode_partial(batch.codes[row : row + 1], size)
        caption = pictures.info(key).captions.get(pictures.config.languages[0], key)
        place = {"key": key, "caption": caption, "split": self._split, "size": name}
        self.records.append({**place, "row": len(self._images[f"original_{name}"]), **scores})
        for what, image in (("original", original), ("copy", copy), ("error", error)):
            self._images[f"{what}_{name}"].append(shrink(image, SHOWN_SIDE))
        self._images[f"stages_{name}"].append(np.stack([shrink(stage[0], STAGE_SIDE) for stage in stages]))


def shrink(image: UInt8[np.ndarray, "H W 3"], side: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture, averaged over squares so that no side is longer than `side`."""
    factor = -(-max(image.shape[:2]) // side)
    return image if factor == 1 else np.asarray(Image.fromarray(image).reduce(factor))


def _keys_by_size(subject: TokenizerSubject, split: str) -> dict[Size, list[str]]:
    """The pictures that are measured at each size, in the order of the data set."""
    pictures, config = subject.pictures, subject.config
    keys = pictures.split(split)
    if len(keys) > config.pictures:
        generator = numpy_generator(config.seed, "tokenizer evaluation", split)
        keys = [keys[i] for i in sorted(generator.choice(len(keys), config.pictures, replace=False))]
    by_size: dict[Size, list[str]] = {size: [] for size in subject.sizes}
    for key in keys:
        for size in nearest_sizes(pictures.native_size(key), subject.sizes):
            by_size[size].append(key)
    return {size: keys for size, keys in by_size.items() if keys}


def _chunks(keys: Sequence[str], length: int) -> Iterator[Sequence[str]]:
    return (keys[start : start + length] for start in range(0, len(keys), length))


def _nothing(subject: TokenizerSubject) -> Rebuilt:
    return Rebuilt(len(subject.codec.codebook), subject.judges)


def _rebuild(subject: TokenizerSubject, keys: Sequence[str], size: Size) -> _Batch | None:
    """The pictures that can be read, and their copies; None when none can."""
    images = {key: image for key in keys if (image := _read(subject.pictures, key, size)) is not None}
    if not images:
        return None
    originals = np.stack(list(images.values()))
    codes = subject.codec.encode(originals)[1]
    return _Batch(list(images), originals, subject.codec.decode(codes, size), codes)


def _read(pictures: PictureSet, key: str, size: Size) -> UInt8[np.ndarray, "H W 3"] | None:
    try:
        return pictures.images([key], size)[0]
    except BrokenPicture:
        return None


def _suffixed(figures: Mapping[str, float], split: str) -> dict[str, float]:
    return {metric_name(figure, split): value for figure, value in figures.items()}

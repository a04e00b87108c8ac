"""Filters that look at one document alone, composed into the function that ingest workers call on each."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

from nextflow_jax.data.buckets import nearest_size
from nextflow_jax.data.corpus.raw import Drop, RawDocument, RawImage, RawText
from nextflow_jax.data.filters.config import BucketFilter, FiltersConfig, PictureFilter, TextFilter
from nextflow_jax.data.filters.scripts import script_share
from nextflow_jax.data.image_files import Size

Step = Callable[[RawDocument], RawDocument | Drop]
"""Keeps a document, maybe changed, or drops it with a reason of data/corpus/reasons.py."""


def make_filters(config: FiltersConfig) -> Step:
    """The step that applies all filters of `config` that do something, in order, until one drops the document.

    No step decodes a picture. The step can be pickled, keeps no state and treats equal documents equally, whichever
    worker it runs in.
    """
    pictures, buckets, texts = config.pictures, config.buckets, config.texts
    steps: list[Step] = []
    if pictures.min_side or pictures.min_pixels:
        steps.append(functools.partial(refuse_small_pictures, pictures))
    if pictures.max_ratio:
        steps.append(functools.partial(refuse_extreme_ratios, pictures))
    if buckets.sizes:
        steps.append(functools.partial(fit_buckets, buckets))
    if texts.min_characters or texts.max_characters:
        steps.append(functools.partial(refuse_text_lengths, texts))
    if texts.scripts:
        steps.append(functools.partial(refuse_other_scripts, texts))
    return functools.partial(apply_steps, tuple(steps))


def apply_steps(steps: Sequence[Step], document: RawDocument) -> RawDocument | Drop:
    """The document after all `steps`, or the first one's Drop."""
    for step in steps:
        result = step(document)
        if isinstance(result, Drop):
            return result
        document = result
    return document


def refuse_small_pictures(config: PictureFilter, document: RawDocument) -> RawDocument | Drop:
    """Drops documents with a picture below `min_side` or `min_pixels`."""
    for height, width in _sizes(document):
        if min(height, width) < config.min_side or height * width < config.min_pixels:
            return Drop(document.key, "small picture")
    return document


def refuse_extreme_ratios(config: PictureFilter, document: RawDocument) -> RawDocument | Drop:
    """Drops documents with a picture whose longer side is more than `max_ratio` times the shorter."""
    if any(max(size) > config.max_ratio * min(size) for size in _sizes(document)):
        return Drop(document.key, "extreme ratio")
    return document


def fit_buckets(config: BucketFilter, document: RawDocument) -> RawDocument | Drop:
    """Drops documents with a picture that would be enlarged or cropped too much to fill its bucket; sets the label."""
    first = None
    for picture in _sizes(document):
        bucket = nearest_size(picture, config.sizes)
        first = first or bucket
        zooms = bucket[0] / picture[0], bucket[1] / picture[1]
        if max(zooms) > config.max_zoom:
            return Drop(document.key, "low resolution")
        # Filled by the larger zoom, the picture overlaps its bucket along the other side.
        if 1 - min(zooms) / max(zooms) > config.max_crop:
            return Drop(document.key, "outside buckets")
    if config.as_label and first:
        return dataclasses.replace(document, label=f"{first[0]}x{first[1]}")
    return document


def refuse_text_lengths(config: TextFilter, document: RawDocument) -> RawDocument | Drop:
    """Drops documents of `tasks` whose texts have together too few or too many characters."""
    if document.task in config.tasks:
        length = sum(len(text.strip()) for text in _texts(document))
        if length < config.min_characters:
            return Drop(document.key, "short text")
        if length > (config.max_characters or math.inf):
            return Drop(document.key, "long text")
    return document


def refuse_other_scripts(config: TextFilter, document: RawDocument) -> RawDocument | Drop:
    """Drops documents of whose letters less than `min_script_share` are of `scripts`."""
    if script_share("\n".join(_texts(document)), config.scripts) < config.min_script_share:
        return Drop(document.key, "other script")
    return document


def _sizes(document: RawDocument) -> list[Size]:
    return [segment.size for segment in document.segments if isinstance(segment, RawImage)]


def _texts(document: RawDocument) -> list[str]:
    return [segment.text for segment in document.segments if isinstance(segment, RawText)]

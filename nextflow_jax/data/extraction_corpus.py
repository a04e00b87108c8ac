"""A corpus as a source of extraction: documents are read as they are asked for, pictures of any size in buckets.

Every picture takes the size of the schedule family whose ratio is nearest to its own. Of the shard that is written, a
picture waits, as the bytes of its file, until its size has a batch; what waits for other pictures is codes and ids. So
memory is bounded by a batch of pixels and the codes of a shard, whatever the corpus holds.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from nextflow_jax.config import to_plain_dict
from nextflow_jax.data.buckets import nearest_size
from nextflow_jax.data.corpus.raw import RawDocument, RawImage, RawSegment, RawText
from nextflow_jax.data.corpus.reader import Corpus
from nextflow_jax.data.extraction_source import Lost, Tokenize, record_key
from nextflow_jax.data.image_files import RefusedImage, Size, read_image
from nextflow_jax.data.picture_codes import Draw, PictureCoder
from nextflow_jax.data.pictures import PicturesConfig
from nextflow_jax.data.records import BrokenRecord, EncodedDocument, EncodedImage, EncodedSegment, EncodedText
from nextflow_jax.errors import UserError

_TEXT_DOCUMENTS = 100_000
"""Documents at most that a text tokenizer is trained on."""
_DECODED_TOGETHER = 16
"""Pictures that a thread decodes at a time: handing over a small one takes longer than decoding it."""
_READ_TOGETHER = 16
"""Documents that are read at a time."""
_SPLITS = ("train", "validation", "heldout")


class CorpusDocuments:
    """See extraction_source.ExtractionSource.

    Args:
      corpus: opened.
      config: the background, and in `folder.limits` the pictures that are refused.
      tasks: documents of others are left out.
      max_images: pictures of a document at most, as in `documents.with_pictures_at_most`; 0 = all.
      batch_size: pictures encoded together on each device.
    """

    def __init__(
        self, corpus: Corpus, config: PicturesConfig, tasks: Sequence[str], max_images: int, batch_size: int
    ) -> None:
        self._corpus, self._config = corpus, config
        self._tasks, self._max_images, self._batch_size = frozenset(tasks), max_images, batch_size
        self._sources = {split: corpus.source(split) for split in _SPLITS if split in corpus.splits}

    def sizes(self) -> Mapping[str, int]:
        """See ExtractionSource; documents that are left out or broken are counted."""
        return {split: len(source) for split, source in self._sources.items()}

    def describe(self) -> Mapping[str, Any]:
        """See ExtractionSource."""
        pictures = {
            "name": self._config.name,
            "background": self._config.background,
            "limits": to_plain_dict(self._config.folder.limits),
            "fingerprint": self._corpus.fingerprint,
        }
        return {"pictures": pictures, "documents": dict(self.sizes())}

    def texts(self) -> Iterator[str]:
        """See ExtractionSource; of training documents spread evenly over the corpus.

        Raises:
          UserError: there are none.
        """
        source = self._sources.get("train")
        if source is None:
            why = "what its filters dropped is in its corpus.json"
            raise UserError(f"corpus {self._corpus.directory} has no training document; {why}")
        for document in self._read_all("train", range(0, len(source), -(-len(source) // _TEXT_DOCUMENTS))):
            if isinstance(document, RawDocument):
                yield from (segment.text for segment in document.segments if isinstance(segment, RawText))

    def encode(
        self, split: str, start: int, stop: int, draw: Draw, coder: PictureCoder, tokenize: Tokenize
    ) -> Iterator[EncodedDocument | Lost]:
        """See ExtractionSource."""
        begun: collections.deque[_Begun] = collections.deque()
        waiting: dict[Size, list[_Waiting]] = {size: [] for size in coder.family.sizes}
        full = self._batch_size * coder.devices
        for raw in self._read_all(split, range(start, stop)):
            document = self._begin(raw, tokenize)
            begun.append(document)
            for size, picture in document.pictures(coder.family.sizes):
                waiting[size].append(picture)
                if len(waiting[size]) == full:
                    self._encode_pictures(waiting[size], size, draw, coder)
                    waiting[size] = []
            while begun and not begun[0].missing:
                yield begun.popleft().end(draw)
        for size, pictures in waiting.items():
            if pictures:
                self._encode_pictures(pictures, size, draw, coder)
        for document in begun:
            yield document.end(draw)

    def _read_all(self, split: str, numbers: range) -> Iterator[RawDocument | Lost]:
        for first in range(0, len(numbers), _READ_TOGETHER):
            some = numbers[first : first + _READ_TOGETHER]
            for number, found in zip(some, self._sources[split].read(some)):
                broken = isinstance(found, BrokenRecord)
                yield Lost(f"{split} document {number}", "broken record") if broken else self._wanted(found)

    def _wanted(self, document: RawDocument) -> RawDocument | Lost:
        if document.task not in self._tasks:
            return Lost(document.key, "task not asked for", broken=False)
        if self._max_images:
            document = _with_pictures_at_most(document, self._max_images)
        if not any(segment.role == "response" for segment in document.segments):
            return Lost(document.key, "nothing to learn within max_images", broken=False)
        return document

    def _begin(self, document: RawDocument | Lost, tokenize: Tokenize) -> "_Begun":
        if isinstance(document, Lost):
            return _Begun(RawDocument(document.key, "", ()), [], document)
        segments: list[EncodedSegment | RawImage] = [
            EncodedText(tokenize(segment.text), segment.role, segment.loss) if isinstance(segment, RawText) else segment
            for segment in document.segments
        ]
        return _Begun(dataclasses.replace(document, segments=()), segments)

    def _encode_pictures(self, pictures: Sequence["_Waiting"], size: Size, draw: Draw, coder: PictureCoder) -> None:
        """Puts the codes into the documents; one whose picture cannot be decoded is lost."""
        decode = functools.partial(_decode, size=size, config=self._config)
        parts = [pictures[start : start + _DECODED_TOGETHER] for start in range(0, len(pictures), _DECODED_TOGETHER)]
        decoded = _decoders().map(lambda part: [decode(picture) for picture in part], parts)
        good, pixels = [], []
        for picture, found in zip(pictures, itertools.chain.from_iterable(decoded)):
            picture.document.missing -= 1
            if isinstance(found, str):
                picture.document.lost = Lost(picture.document.raw.key, found)
            else:
                good.append(picture)
                pixels.append(found)
        if not good:
            return
        keys = [f"{picture.document.raw.key}/{picture.segment}" for picture in good]
        for picture, inputs, targets in zip(good, *coder.encode(keys, np.stack(pixels), draw)):
            image = picture.image
            picture.document.segments[picture.segment] = EncodedImage(size, inputs, targets, image.role, image.loss)


class _Begun:
    """A document whose pictures are not all encoded yet."""

    def __init__(self, raw: RawDocument, segments: list[EncodedSegment | RawImage], lost: Lost | None = None) -> None:
        self.raw, self.segments, self.lost = raw, segments, lost
        self.missing = sum(isinstance(segment, RawImage) for segment in segments)

    def pictures(self, sizes: Sequence[Size]) -> Iterator[tuple[Size, "_Waiting"]]:
        """The pictures that are to be encoded, each with its size."""
        for number, segment in enumerate(self.segments):
            if isinstance(segment, RawImage):
                yield nearest_size(segment.size, sizes), _Waiting(self, number, segment)

    def end(self, draw: Draw) -> EncodedDocument | Lost:
        """The record, or why there is none."""
        if self.lost is not None:
            return self.lost
        raw, key = self.raw, record_key(self.raw.key, draw)
        return EncodedDocument(key, raw.task, tuple(self.segments), raw.source, raw.licence)


class _Waiting(NamedTuple):
    document: _Begun
    segment: int
    image: RawImage


def _decode(picture: _Waiting, size: Size, config: PicturesConfig) -> UInt8[np.ndarray, "H W 3"] | str:
    """The pixels, or the reason why there are none."""
    try:
        return read_image(picture.image.data, size, config.background, config.folder.limits)
    except RefusedImage as refused:
        return f"picture: {refused.reason}"


@functools.cache
def _decoders() -> concurrent.futures.ThreadPoolExecutor:
    """Threads that decode files; Pillow lets others run meanwhile."""
    return concurrent.futures.ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="nextflow_jax-decode")


def _with_pictures_at_most(document: RawDocument, most: int) -> RawDocument:
    """The document up to the picture after the `most`-th and the words right before that."""
    kept: list[RawSegment] = []
    pictures = 0
    for segment in document.segments:
        pictures += isinstance(segment, RawImage)
        if pictures > most:
            while kept and isinstance(kept[-1], RawText):
                kept.pop()
            break
        kept.append(segment)
    return dataclasses.replace(document, segments=tuple(kept))

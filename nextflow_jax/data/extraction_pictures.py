"""A picture set as a source of extraction: documents in memory, each picture encoded once a draw for all of them."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nextflow_jax.config import to_plain_dict
from nextflow_jax.data.documents import Document, Text, document_texts
from nextflow_jax.data.extraction_source import Lost, Tokenize, record_key
from nextflow_jax.data.picture_codes import Draw, PictureCoder, PictureEncoder
from nextflow_jax.data.pictures import PictureSet
from nextflow_jax.data.records import EncodedDocument, EncodedSegment, EncodedText


class PictureSetSource:
    """See extraction_source.ExtractionSource.

    Args:
      pictures: what the documents show.
      documents: by split; a split without documents is left out of the shards.
      batch_size: pictures encoded together on each device.
    """

    def __init__(self, pictures: PictureSet, documents: Mapping[str, Sequence[Document]], batch_size: int) -> None:
        self._pictures = pictures
        self._documents = dict(documents)
        self._batch_size = batch_size
        self._encoders: dict[int, PictureEncoder] = {}

    def sizes(self) -> Mapping[str, int]:
        """See ExtractionSource."""
        return {split: len(documents) for split, documents in self._documents.items() if documents}

    def describe(self) -> Mapping[str, Any]:
        """See ExtractionSource."""
        config = to_plain_dict(self._pictures.config)
        del config["root"]
        return {
            "pictures": {**config, "fingerprint": self._pictures.fingerprint},
            "documents": {split: _fingerprint(documents) for split, documents in self._documents.items()},
        }

    def texts(self) -> Iterator[str]:
        """See ExtractionSource; of all training documents."""
        return document_texts(self._documents.get("train", ()))

    def encode(
        self, split: str, start: int, stop: int, draw: Draw, coder: PictureCoder, tokenize: Tokenize
    ) -> Iterator[EncodedDocument | Lost]:
        """See ExtractionSource; nothing is ever lost."""
        encoder = self._encoder(coder)
        for document in self._documents[split][start:stop]:
            segments: list[EncodedSegment] = []
            for segment in document.segments:
                if isinstance(segment, Text):
                    segments.append(EncodedText(tokenize(segment.text), segment.role, segment.loss))
                else:
                    segments.append(encoder.encode(segment, draw))
            key = record_key(document.key, draw)
            yield EncodedDocument(key, document.task, tuple(segments), document.source, document.licence)

    def _encoder(self, coder: PictureCoder) -> PictureEncoder:
        if id(coder) not in self._encoders:
            every = (document for documents in self._documents.values() for document in documents)
            keys = dict.fromkeys(key for document in every for key in document.image_keys())
            self._encoders = {id(coder): PictureEncoder(self._pictures, list(keys), coder, self._batch_size)}
        return self._encoders[id(coder)]


def _fingerprint(documents: Sequence[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps(to_plain_dict(document), sort_keys=True).encode())
    return digest.hexdigest()

"""What extraction reads: documents by number, which become records draw by draw."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from nextflow_jax.data.picture_codes import Draw, PictureCoder
from nextflow_jax.data.records import EncodedDocument

Tokenize = Callable[[str], Int[np.ndarray, "tokens"]]
"""A text to its ids without specials."""


class Lost(NamedTuple):
    """A document that gives no record."""

    key: str
    reason: str
    broken: bool = True
    """False: it was left out on purpose."""


@runtime_checkable
class ExtractionSource(Protocol):
    """The documents of an extraction."""

    def sizes(self) -> Mapping[str, int]:
        """Number of documents of every split that has any."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """All that the records depend on besides the tokenizers, JSON-ready, without paths of this machine."""
        ...

    def texts(self) -> Iterator[str]:
        """What a text tokenizer of these documents is trained on; of many documents a part."""
        ...

    def encode(
        self, split: str, start: int, stop: int, draw: Draw, coder: PictureCoder, tokenize: Tokenize
    ) -> Iterator[EncodedDocument | Lost]:
        """Documents start <= i < stop of a split, in order.

        A document's key in its records ends in `#` and the draw's number. What it becomes does not depend on the
        others that are asked for.
        """
        ...


def record_key(key: str, draw: Draw) -> str:
    """The key of a document's record."""
    return f"{key}#{draw.number}"

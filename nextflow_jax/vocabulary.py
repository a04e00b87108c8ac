"""The unified vocabulary: text ids first, then the specials, then the codes of the vision tokenizer."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from nextflow_jax.config import Fault

SPECIALS = ("pad", "bos", "eos", "boi", "eoi")
"""In id order: padding, begin and end of document, begin and end of image."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Where each kind of token lies among the ids of the one embedding table and the one output head.

        0 ... text_size-1 | pad bos eos boi eoi | code 0 ... code V-1 | unused up to a multiple of pad_multiple

    The unused tail makes the table divisible over the tensor axis of a mesh; it is never a target.
    """

    text_size: int
    codebook_size: int
    pad_multiple: int = 128

    @property
    def pad(self) -> int:
        """Fills positions that belong to no document."""
        return self.text_size

    @property
    def bos(self) -> int:
        """Begins a document."""
        return self.text_size + 1

    @property
    def eos(self) -> int:
        """Ends a document."""
        return self.text_size + 2

    @property
    def boi(self) -> int:
        """Begins an image; its position predicts the 1x1 scale."""
        return self.text_size + 3

    @property
    def eoi(self) -> int:
        """Ends an image."""
        return self.text_size + 4

    @property
    def vision_offset(self) -> int:
        """Unified id of code 0."""
        return self.text_size + len(SPECIALS)

    @property
    def used(self) -> int:
        """Ids that mean something."""
        return self.vision_offset + self.codebook_size

    @property
    def size(self) -> int:
        """Rows of the embedding table and of the head: `used`, padded."""
        return self.padded(self.used)

    def padded(self, ids: int) -> int:
        """`ids` up to a multiple of pad_multiple: entries of a dimension that is to shard."""
        return -(-ids // self.pad_multiple) * self.pad_multiple

    def ids_within(self, larger: "Vocabulary") -> Int[np.ndarray, "used"]:
        """The ids that this vocabulary's have in one with as many text ids and codes or more, in order."""
        behind_text = np.arange(self.text_size, self.used) + larger.text_size - self.text_size
        return np.concatenate([np.arange(self.text_size), behind_text])

    def code_ids(self, codes: Any) -> Any:
        """Unified ids of codes (an integer or an array of them)."""
        return codes + self.vision_offset

    def faults(self) -> Iterator[Fault]:
        """The rules this vocabulary breaks."""
        for name in ("text_size", "codebook_size", "pad_multiple"):
            if getattr(self, name) < 1:
                yield Fault(name, getattr(self, name), "must be positive", "set it from the tokenizers")

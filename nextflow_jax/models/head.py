"""The output head: one set of weights over text, specials and visual codes (NextFlow's), or one for each modality."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.models.layers import kernel_init
from nextflow_jax.ops.cross_entropy.reference import logits_of

__all__ = ["Head", "SeparateHeads", "logits_of"]


class SeparateHeads(NamedTuple):
    """The weights of a head for each modality, unused ids left out."""

    text: Float[Array, "D text"]
    """Column i: id i, of text or a special."""
    vision: Float[Array, "D codes"]
    """Column i: code i."""


class Head(nn.Module):
    """Holds the head's weights; the product with hidden states is `logits_of`, or part of a fused loss.

    The weights of separate heads are padded each, so that both shard. A tied text head is the token table, given.
    """

    config: DecoderConfig

    def setup(self) -> None:
        vocabulary = self.config.vocabulary
        if self.config.head == "shared":
            self.kernel = self._columns("kernel", vocabulary.size)
            return
        if not self.config.tied_head:
            self.text_kernel = self._columns("text_kernel", vocabulary.padded(vocabulary.vision_offset))
        self.vision_kernel = self._columns("vision_kernel", vocabulary.padded(vocabulary.codebook_size))

    def __call__(self) -> Float[Array, "D V"]:
        """The shared head."""
        return self.kernel

    def text(self, table: Float[Array, "V D"]) -> Float[Array, "D text"]:
        """The text head of separate ones; `table`: the token table, which it is when tied."""
        kernel = table.T if self.config.tied_head else self.text_kernel
        return kernel[:, : self.config.vocabulary.vision_offset]

    def vision(self) -> Float[Array, "D codes"]:
        """The vision head of separate ones."""
        return self.vision_kernel[:, : self.config.vocabulary.codebook_size]

    def _columns(self, name: str, count: int) -> Float[Array, "D columns"]:
        init = kernel_init(self.config, "embed", "vocab")
        return self.param(name, init, (self.config.width, count), self.config.parameter_dtype)


def joined(heads: SeparateHeads, columns: int) -> Float[Array, "D V"]:
    """Both heads beside one another, zeros in the columns of unused ids."""
    whole = jnp.concatenate(heads, axis=1)
    return jnp.pad(whole, [(0, 0), (0, columns - whole.shape[1])])

"""The output head: one set of weights over text, specials and visual codes (NextFlow's shared head)."""

import flax.linen as nn
from jaxtyping import Array, Float

from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.models.layers import kernel_init
from nextflow_jax.ops.cross_entropy.reference import logits_of

__all__ = ["Head", "logits_of"]


class Head(nn.Module):
    """Holds the head's weights; the product with hidden states is `logits_of`, or part of a fused loss."""

    config: DecoderConfig

    def setup(self) -> None:
        shape = (self.config.width, self.config.vocabulary.size)
        init = kernel_init(self.config, "embed", "vocab")
        self.kernel = self.param("kernel", init, shape, self.config.parameter_dtype)

    def __call__(self) -> Float[Array, "D V"]:
        return self.kernel

"""The decoder: one causal transformer that reads and writes interleaved text and images.

    DecoderInputs -> Embedding -> scan of DecoderLayer -> RMSNorm -> hidden -> Head -> logits

The arrays it reads are those of `nextflow_jax.sequence.Sequence`, batched; what any position may see is decided there.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nextflow_jax.models.activations import COLLECTION
from nextflow_jax.models.cache import KVCache
from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.models.embedding import Embedding
from nextflow_jax.models.head import Head, SeparateHeads, joined, logits_of
from nextflow_jax.models.layers import DecoderLayer, RMSNorm, Surroundings
from nextflow_jax.models.remat import remat_policy
from nextflow_jax.models.rope import make_rotation
from nextflow_jax.sharding import constrain

__all__ = ["Decoder", "DecoderConfig", "DecoderInputs"]


class DecoderInputs(NamedTuple):
    """What the decoder reads of a batch of rows. With a cache, attend ranges count cache slots."""

    tokens: Int[Array, "B S"]
    vision_ids: Int[Array, "B S T"]
    vision_weights: Float[Array, "B S T"]
    positions: Float[Array, "B S 3"]
    scale_index: Int[Array, "B S"]
    num_scales: Int[Array, "B S"]
    attend_start: Int[Array, "B S"]
    attend_end: Int[Array, "B S"]
    vision_features: Float[Array, "B S C"] | None = None
    """Accumulated features in place of the weighted codes."""

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> "DecoderInputs":
        """The inputs among the arrays of a batch (names as in `Sequence`); others are ignored."""
        return cls(**{name: batch[name] for name in cls._fields if name in batch})

    @classmethod
    def zeros(cls, rows: int, length: int, taps: int = 1) -> "DecoderInputs":
        """Inputs of the right shapes and no meaning, to initialise or trace a decoder with."""
        whole = jnp.zeros((rows, length), jnp.int32)
        taps_shape = (rows, length, taps)
        return cls(
            tokens=whole,
            vision_ids=jnp.zeros(taps_shape, jnp.int32),
            vision_weights=jnp.zeros(taps_shape, jnp.float32),
            positions=jnp.zeros((rows, length, 3), jnp.float32),
            scale_index=whole,
            num_scales=whole,
            attend_start=whole,
            attend_end=whole,
        )


class Decoder(nn.Module):
    """The transformer. `hidden` and `head_weights` are apart so that a loss may fuse the head."""

    config: DecoderConfig

    def setup(self) -> None:
        config = self.config
        self.embedding = Embedding(config)
        self.layers = _stacked_layers(config)
        self.final_norm = RMSNorm(config)
        if config.head == "separate" or not config.tied_head:
            self.head = Head(config)

    def __call__(
        self, inputs: DecoderInputs, cache: KVCache | None = None
    ) -> tuple[Float[Array, "B S V"], KVCache | None]:
        """Float32 logits of the token each position predicts, and the cache after these positions.

        With separate heads those of text and specials come from one, those of codes from the other.
        """
        hidden, cache = self.hidden(inputs, cache)
        logits = logits_of(hidden, self.head_weights())
        return constrain(logits, "batch", "sequence", "vocab"), cache

    def hidden(
        self, inputs: DecoderInputs, cache: KVCache | None = None
    ) -> tuple[Float[Array, "B S D"], KVCache | None]:
        """The normalised last hidden states, in the compute dtype, and the cache after these positions."""
        config = self.config
        x = self.embedding(
            inputs.tokens,
            inputs.vision_ids,
            inputs.vision_weights,
            inputs.vision_features,
            inputs.scale_index,
            inputs.num_scales,
        )
        rotation = make_rotation(inputs.positions, config.head_size, config.rope_base, config.rope_sections)
        around = Surroundings(rotation, inputs.attend_start, inputs.attend_end)
        (x, cache), _ = self.layers((x, cache), jnp.arange(config.layers), around)
        if cache is not None:
            cache = cache._replace(length=cache.length + inputs.tokens.shape[1])
        return self.final_norm(x), cache

    def head_weights(self) -> Float[Array, "D V"]:
        """The weights of all ids in the parameter dtype; of unused ids, separate heads have zeros."""
        if self.config.head == "separate":
            return joined(SeparateHeads(self.text_head(), self.vision_head()), self.config.vocabulary.size)
        return self.embedding.table().T if self.config.tied_head else self.head()

    def text_head(self) -> Float[Array, "D text"]:
        """The weights of text and specials (ids below `vision_offset`), whichever kind of head there is."""
        if self.config.head == "separate":
            return self.head.text(self.embedding.table())
        return self.head_weights()[:, : self.config.vocabulary.vision_offset]

    def vision_head(self) -> Float[Array, "D codes"]:
        """The weights of the codes that are used, whichever kind of head there is."""
        if self.config.head == "separate":
            return self.head.vision()
        vocabulary = self.config.vocabulary
        return self.head_weights()[:, vocabulary.vision_offset : vocabulary.used]

    def loss_heads(self) -> Float[Array, "D V"] | SeparateHeads:
        """What the loss takes its softmaxes over: `models.objective.hidden_loss`."""
        if self.config.head == "separate":
            return SeparateHeads(self.text_head(), self.vision_head())
        return self.head_weights()


def _stacked_layers(config: DecoderConfig) -> nn.Module:
    """All layers as one module, parameters stacked along a first axis named "layers"."""
    layer = DecoderLayer
    if config.remat != "none":
        layer = nn.remat(layer, policy=remat_policy(config.remat), prevent_cse=False)
    scanned = nn.scan(
        layer,
        variable_axes={"params": 0, COLLECTION: 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=config.layers,
        unroll=config.scan_unroll,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(config)

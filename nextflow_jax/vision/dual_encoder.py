"""The teacher: an image-text dual encoder trained with the sigmoid loss (SigLIP, arXiv 2303.15343, and SigLIP 2).

API for training and distillation:

    encoder = DualEncoder(config, text_vocabulary)
    params = encoder.init(key, images, tokens, lengths)["params"]
    loss, metrics = contrastive_loss(encoder.apply({"params": params}, images, tokens, lengths))
    features = teacher_features(config, params, images)                 # [B, Y, X, D], for distillation
    vision_tower(params)                                                # the semantic encoder may start from it
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nextflow_jax.config import Fault
from nextflow_jax.vision.losses import SumWeight
from nextflow_jax.vision.transformer import INIT_SCALE, Transformer, TransformerConfig, dense, partitioned
from nextflow_jax.vision.vit import AttentionPool, Patches, ViT, ViTConfig

NORM_FLOOR = 1e-12
TEXT_POOLING = ("mean", "last")


@dataclasses.dataclass(frozen=True)
class DualEncoderConfig:
    """The two towers, the shared embedding space, and where the loss's temperature and bias start."""

    vit: ViTConfig = ViTConfig()
    text: TransformerConfig = TransformerConfig()
    max_text_tokens: int = 24
    """Captions are cut to this many tokens."""
    text_pooling: str = "mean"
    """"mean" over the real tokens; "last" (SigLIP 2): padded to `max_text_tokens`, all seen, the last one's vector."""
    padding_token: int = 0
    """What "last" pads with; it is seen like any other token."""
    image_projection: bool = True
    """A linear map after the image pooling; SigLIP 2 has none, so its embeddings are as wide as its ViT."""
    embedding_dim: int = 64
    initial_temperature: float = 10.0
    """Similarities are multiplied by it; learned (as its logarithm)."""
    initial_bias: float = -10.0
    """Added to the scaled similarities; learned. Negative, because most pairs do not match."""
    dtype: str = "float32"

    def faults(self) -> Iterator[Fault]:
        """The rules this configuration breaks."""
        if self.initial_temperature <= 0:
            yield Fault("initial_temperature", self.initial_temperature, "must be positive", "use 10.0")
        if self.max_text_tokens < 1:
            yield Fault("max_text_tokens", self.max_text_tokens, "must be at least 1", "use e.g. 24")
        if self.text_pooling not in TEXT_POOLING:
            yield Fault("text_pooling", self.text_pooling, f"must be one of {TEXT_POOLING}", "use 'mean'")
        width = self.vit.transformer.width
        if not self.image_projection and self.embedding_dim != width:
            yield Fault(
                "embedding_dim", self.embedding_dim, "is the ViT's width without image_projection", f"use {width}"
            )
        if self.dtype not in ("float32", "bfloat16"):
            yield Fault("dtype", self.dtype, "must be float32 or bfloat16", "use 'float32'")


class DualEncoderOutput(NamedTuple):
    """Unit vectors of a batch of matching pairs, and the loss's two scalars."""

    images: Float[Array, "B D"]
    texts: Float[Array, "B D"]
    temperature: Float[Array, ""]
    bias: Float[Array, ""]


class TextTower(nn.Module):
    """Token ids to one vector: transformer, then the mean over the real tokens or the last position."""

    config: DualEncoderConfig
    vocabulary: int

    @nn.compact
    def __call__(self, tokens: Int[Array, "B E"], lengths: Int[Array, "B"]) -> Float[Array, "B D"]:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        table_init = partitioned(nn.initializers.normal(INIT_SCALE), "vocab", "embed")
        table = self.param("embedding", table_init, (self.vocabulary, config.text.width))
        position_init = partitioned(nn.initializers.normal(INIT_SCALE), None, "embed")
        positions = self.param("positions", position_init, (config.max_text_tokens, config.text.width))
        mask = jnp.arange(tokens.shape[1]) < lengths[:, None]
        if config.text_pooling == "last":
            tokens = jnp.where(mask, tokens, config.padding_token)
            missing = config.max_text_tokens - tokens.shape[1]
            tokens = jnp.pad(tokens, ((0, 0), (0, missing)), constant_values=config.padding_token)
        x = (table[tokens] + positions[: tokens.shape[1]]).astype(dtype)
        transformer = Transformer(config.text, dtype, name="transformer")
        if config.text_pooling == "last":
            return transformer(x)[:, -1].astype(jnp.float32)
        x = transformer(x, mask)
        weights = mask.astype(jnp.float32) / jnp.maximum(lengths, 1)[:, None]
        return jnp.einsum("BED,BE->BD", x.astype(jnp.float32), weights)


class DualEncoder(nn.Module):
    """Two towers into one space. `text_vocabulary`: number of token ids of the text tokenizer."""

    config: DualEncoderConfig
    text_vocabulary: int

    def setup(self) -> None:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        self.vision = ViT(config.vit, dtype)
        self.pool = AttentionPool(config.vit.transformer, dtype)
        if config.image_projection:
            self.image_projection = dense(config.embedding_dim, ("embed", None), jnp.float32)
        self.text = TextTower(config, self.text_vocabulary)
        self.text_projection = dense(config.embedding_dim, ("embed", None), jnp.float32)
        temperature_init = nn.initializers.constant(math.log(config.initial_temperature))
        self.log_temperature = self.param("log_temperature", temperature_init, ())
        self.bias = self.param("bias", nn.initializers.constant(config.initial_bias), ())

    def __call__(
        self, images: Float[Array, "B H W 3"] | Patches, tokens: Int[Array, "B E"], lengths: Int[Array, "B"]
    ) -> DualEncoderOutput:
        """Embeds pairs; row i of `images` belongs to row i of `tokens`.

        Args:
          images: float32 in [-1, 1], of one size or as patches of mixed shapes.
          tokens: text ids, padded at the end to E <= max_text_tokens (what stands in the padding does not matter).
          lengths: real tokens of each row.
        """
        return DualEncoderOutput(
            self.embed_images(images), self.embed_texts(tokens, lengths), jnp.exp(self.log_temperature), self.bias
        )

    def embed_images(self, images: Float[Array, "B H W 3"] | Patches) -> Float[Array, "B D"]:
        """Unit vectors of pictures."""
        pooled = self.pool(self.vision(images), images.mask if isinstance(images, Patches) else None)
        return _unit(self.image_projection(pooled) if self.config.image_projection else pooled.astype(jnp.float32))

    def embed_texts(self, tokens: Int[Array, "B E"], lengths: Int[Array, "B"]) -> Float[Array, "B D"]:
        """Unit vectors of texts."""
        return _unit(self.text_projection(self.text(tokens, lengths)))


def contrastive_loss(output: DualEncoderOutput) -> tuple[Float[Array, ""], dict[str, SumWeight]]:
    """The sigmoid loss over all pairs of the batch (SigLIP, algorithm 1), and metrics as (sum, weight).

    Every pair is its own binary question, "do they match?", so no row depends on a normaliser over the batch.
    """
    similarity = output.images @ output.texts.T
    logits = similarity * output.temperature + output.bias
    batch = logits.shape[0]
    labels = 2 * jnp.eye(batch, dtype=jnp.float32) - 1
    per_image = -jnp.sum(jax.nn.log_sigmoid(labels * logits), axis=-1)
    count = jnp.asarray(batch, jnp.float32)
    rows = jnp.arange(batch)
    loss = jnp.sum(per_image) / count
    metrics = {
        "loss/total": (loss, jnp.ones((), jnp.float32)),
        "retrieval/image_to_text": (jnp.sum(jnp.argmax(logits, axis=1) == rows).astype(jnp.float32), count),
        "retrieval/text_to_image": (jnp.sum(jnp.argmax(logits, axis=0) == rows).astype(jnp.float32), count),
    }
    return loss, metrics


def teacher_features(
    config: DualEncoderConfig, params: Any, images: Float[Array, "B H W 3"]
) -> Float[Array, "B Y X D"]:
    """The frozen teacher's patch features of pictures (float32 in [-1, 1]), which the semantic decoder predicts.

    Args:
      config: the teacher's.
      params: its "params" (unboxed).
      images: any size that is a multiple of the patch.
    """
    tower = ViT(config.vit, jnp.dtype(config.dtype))
    return jax.lax.stop_gradient(tower.apply({"params": vision_tower(params)}, images).astype(jnp.float32))


def vision_tower(params: Any) -> Any:
    """The parameters of the teacher's ViT within the dual encoder's."""
    return params["vision"]


def _unit(vectors: Float[Array, "B D"]) -> Float[Array, "B D"]:
    return vectors * jax.lax.rsqrt(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True) + NORM_FLOOR)

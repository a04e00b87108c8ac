"""What enters the first layer: token embeddings, vision codes through the connector, and what tells scales apart."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jaxtyping import Array, Float, Int

from nextflow_jax.errors import UserError
from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.models.layers import kernel_init, projection
from nextflow_jax.sharding import constrain


class Embedding(nn.Module):
    """Input vectors of text and vision positions (NextFlow, sections on visual inputs; recipe section 4).

    Text and special positions take a row of the unified table. A vision position takes the weighted sum of its source
    codes' embeddings, or given features, both halves or one, through the connector, plus its scale's embedding. <boi>
    and vision positions also carry the encoding of the image's number of scales.
    """

    config: DecoderConfig

    def setup(self) -> None:
        config = self.config
        rows = (config.vocabulary.size, config.width)
        self.tokens = self.param("tokens", kernel_init(config, "vocab", "embed"), rows, config.parameter_dtype)
        # Rows of unit length on average, as the codebook has that `with_codebook` puts here.
        codes_init = nn.with_logical_partitioning(nn.initializers.normal(config.code_dim**-0.5), ("codes", "code"))
        codes = (config.vocabulary.codebook_size, config.code_dim)
        self.codes = self.param("codes", codes_init, codes, config.parameter_dtype)
        self.connector = Connector(config)
        if config.scale_embeddings:
            scales = (config.max_scales, config.width)
            self.scales = self.param("scales", kernel_init(config, "scales", "embed"), scales, config.parameter_dtype)
        if config.scale_count_encoding:
            # The sinusoids are of order 1 and embeddings of the initial deviation: a learned gain evens them out.
            gain_init = nn.initializers.constant(config.initializer_range)
            gain_init = nn.with_logical_partitioning(gain_init, ("embed",))
            self.scale_count_gain = self.param("scale_count_gain", gain_init, (config.width,), config.parameter_dtype)

    def __call__(
        self,
        tokens: Int[Array, "B S"],
        vision_ids: Int[Array, "B S T"],
        vision_weights: Float[Array, "B S T"],
        vision_features: Float[Array, "B S C"] | None,
        scale_index: Int[Array, "B S"],
        num_scales: Int[Array, "B S"],
    ) -> Float[Array, "B S D"]:
        dtype = self.config.compute_dtype
        is_vision = (scale_index > 0)[..., None]
        if vision_features is None:
            codes = _look_up(self.codes.astype(dtype), "codes", vision_ids)
            vision_features = jnp.einsum("BSTC,BST->BSC", codes, vision_weights.astype(dtype))
        vision = self.connector(vision_features[..., self.config.input_dims].astype(dtype))
        if self.config.scale_embeddings:
            vision = vision + _look_up(self.scales.astype(dtype), "scales", jnp.maximum(scale_index - 1, 0))
        x = jnp.where(is_vision, vision, _look_up(self.tokens.astype(dtype), "vocab", tokens))
        if self.config.scale_count_encoding:
            encoding = sinusoidal(num_scales, self.config.width) * self.scale_count_gain.astype(jnp.float32)
            x = x + jnp.where((num_scales > 0)[..., None], encoding, 0.0).astype(dtype)
        return constrain(x, "batch", "sequence", None)

    def table(self) -> Float[Array, "V D"]:
        """The unified token table, for a tied head."""
        return self.tokens


class Connector(nn.Module):
    """From code features to the model's width."""

    config: DecoderConfig

    def setup(self) -> None:
        width = self.config.width
        if self.config.connector == "mlp":
            self.hidden = projection(self.config, width, ("code", "mlp"), bias=True)
            self.out = projection(self.config, width, ("mlp", "embed"), bias=True)
        else:
            self.out = projection(self.config, width, ("code", "embed"), bias=True)

    def __call__(self, features: Float[Array, "B S C"]) -> Float[Array, "B S D"]:
        if self.config.connector == "mlp":
            features = nn.gelu(self.hidden(features))
        return self.out(features)


def _look_up(
    table: Float[Array, "entries width"], entries_axis: str, ids: Int[Array, "*rows"]
) -> Float[Array, "*rows width"]:
    """Entries of a table. Their width is made whole first: split, the looked-up rows would all be exchanged."""
    return jnp.take(constrain(table, entries_axis, None), ids, axis=0)


def sinusoidal(values: Int[Array, "B S"], width: int) -> Float[Array, "B S D"]:
    """Sines, then cosines, of the values at width/2 frequencies from 1 down to 1/10000 (arXiv 1706.03762, 3.5)."""
    half = width // 2
    frequency = np.exp(-np.log(1e4) * np.arange(half) / max(half - 1, 1)).astype(np.float32)
    angle = values[..., None].astype(jnp.float32) * frequency
    encoding = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return jnp.pad(encoding, [(0, 0), (0, 0), (0, width - 2 * half)])


def with_codebook(variables: dict[str, Any], codebook: Float[np.ndarray, "codes C"]) -> dict[str, Any]:
    """Decoder variables whose vision embeddings are the tokenizer's codebook (recipe section 4); the rest is shared.

    Args:
      variables: of a `Decoder`, boxed or not; not changed.
      codebook: a row a code, semantic and pixel halves joined.

    Raises:
      UserError: the codebook's shape is not that of the decoder's table.
    """
    embedding = variables["params"]["embedding"]
    old = meta.unbox(embedding["codes"])
    if old.shape != codebook.shape:
        raise UserError(
            f"codebook of shape {codebook.shape} does not fit the decoder's vision table {old.shape}; "
            "set model.vocabulary.codebook_size and model.code_dim to the vision tokenizer's"
        )
    codes = meta.replace_boxed(embedding["codes"], jnp.asarray(codebook, old.dtype))
    return {**variables, "params": {**variables["params"], "embedding": {**embedding, "codes": codes}}}

"""The parts of a decoder layer: RMSNorm, grouped-query attention, SwiGLU. Source: Qwen2.5-VL's language tower."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nextflow_jax.models.activations import watch
from nextflow_jax.models.cache import KVCache
from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.models.remat import layer_input
from nextflow_jax.models.rope import Rotation, rotate
from nextflow_jax.ops.attention import attend
from nextflow_jax.ops.linear import linear_dot
from nextflow_jax.sharding import constrain


class Surroundings(NamedTuple):
    """What every layer needs to know about the positions it works on."""

    rotation: Rotation
    attend_start: Int[Array, "B S"]
    attend_end: Int[Array, "B S"]


def kernel_init(config: DecoderConfig, *axes: str | None) -> nn.initializers.Initializer:
    """Normal initialisation with the configured deviation, boxed with logical axes."""
    return nn.with_logical_partitioning(nn.initializers.normal(config.initializer_range), axes)


def projection(
    config: DecoderConfig,
    features: int | tuple[int, ...],
    axes: tuple[str, ...],
    *,
    inputs: int = 1,
    bias: bool = False,
) -> nn.DenseGeneral:
    """A linear map over the last `inputs` dimensions.

    Args:
      config: dtypes and initialisation.
      features: output dimensions.
      axes: logical axes of the kernel, inputs first.
      inputs: how many trailing dimensions are contracted.
      bias: add one.
    """
    return nn.DenseGeneral(
        features,
        axis=tuple(range(-inputs, 0)),
        use_bias=bias,
        dtype=config.compute_dtype,
        param_dtype=config.parameter_dtype,
        kernel_init=kernel_init(config, *axes),
        dot_general=linear_dot,
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[inputs:]),
    )


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last dimension, in float32 (arXiv 1910.07467)."""

    config: DecoderConfig
    axis: str = "embed"
    """Logical axis of the dimension that is normalised."""

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        init = nn.with_logical_partitioning(nn.initializers.ones_init(), (self.axis,))
        scale = self.param("scale", init, (x.shape[-1],), self.config.parameter_dtype)
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        return (x32 * jax.lax.rsqrt(mean_square + self.config.norm_eps) * scale.astype(jnp.float32)).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention by ranges, with rotary positions and, when given, the key-value cache."""

    config: DecoderConfig

    def setup(self) -> None:
        config = self.config
        heads, kv_heads = (config.heads, config.head_size), (config.kv_heads, config.head_size)
        bias = config.attention_bias
        self.query = projection(config, heads, ("embed", "heads", "head"), bias=bias)
        self.key = projection(config, kv_heads, ("embed", "kv_heads", "head"), bias=bias)
        self.value = projection(config, kv_heads, ("embed", "kv_heads", "head"), bias=bias)
        self.out = projection(config, config.width, ("heads", "head", "embed"), inputs=2)
        if config.qk_norm:
            self.query_norm = RMSNorm(config, "head")
            self.key_norm = RMSNorm(config, "head")

    def __call__(
        self, x: Float[Array, "B S D"], around: Surroundings, layer: Int[Array, ""], cache: KVCache | None
    ) -> tuple[Float[Array, "B S D"], KVCache | None]:
        q = constrain(self.query(x), "batch", "sequence", "heads", None)
        k = constrain(self.key(x), "batch", "sequence", "kv_heads", None)
        v = constrain(self.value(x), "batch", "sequence", "kv_heads", None)
        if self.config.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k = rotate(q, around.rotation), rotate(k, around.rotation)
        if cache is not None:
            cache = cache.write(layer, k, v)
            k, v = cache.read(layer)
        mixed = attend(q, k, v, around.attend_start, around.attend_end, implementation=self.config.attention)
        return self.out(constrain(mixed, "batch", "sequence", "heads", None)), cache


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    config: DecoderConfig

    def setup(self) -> None:
        self.gate = projection(self.config, self.config.mlp_width, ("embed", "mlp"))
        self.up = projection(self.config, self.config.mlp_width, ("embed", "mlp"))
        self.down = projection(self.config, self.config.width, ("mlp", "embed"))

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        hidden = nn.silu(self.gate(x)) * self.up(x)
        return self.down(constrain(hidden, "batch", "sequence", "mlp"))


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP, in the form that a scan over layers takes."""

    config: DecoderConfig

    def setup(self) -> None:
        self.attention_norm = RMSNorm(self.config)
        self.attention = Attention(self.config)
        self.mlp_norm = RMSNorm(self.config)
        self.mlp = SwiGLU(self.config)

    def __call__(
        self, carry: tuple[Float[Array, "B S D"], KVCache | None], layer: Int[Array, ""], around: Surroundings
    ) -> tuple[tuple[Float[Array, "B S D"], KVCache | None], None]:
        x, cache = carry
        x = layer_input(x)
        mixed, cache = self.attention(self.attention_norm(x), around, layer, cache)
        x = x + mixed
        x = x + self.mlp(self.mlp_norm(x))
        watch(self, x)
        return (constrain(x, "batch", "sequence", None), cache), None

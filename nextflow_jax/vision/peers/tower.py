"""Transformers over a grid of patch vectors as CLIP, SigLIP, ViTamin and BEiT define them: one stack, told apart by
its configuration. Training of our own goes through nextflow_jax/vision/transformer.py."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nextflow_jax.config import Fault
from nextflow_jax.vision.transformer import INIT_SCALE, dense, partitioned


def quick_gelu(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """x * sigmoid(1.702 x), OpenAI's approximation of the GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
}


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """Sizes of a tower, and where its definition departs from a plain pre-norm transformer."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str = "gelu"
    """A key of ACTIVATIONS."""
    gated: bool = False
    """The MLP is a gated one with one more norm at its entrance (ViTamin's GeGLU)."""
    key_bias: bool = True
    """BEiT's keys have no bias."""
    epsilon: float = 1e-6
    """Of all norms."""
    class_token: bool = False
    """One more token goes first through all blocks; it is dropped at the end."""
    grid: tuple[int, int] = (0, 0)
    """Rows and columns of the learned positions; (0, 0) = none, for any grid."""
    norm_before: bool = False
    norm_after: bool = False
    """A norm before the first block (CLIP), after the last."""

    def faults(self) -> Iterator[Fault]:
        """The rules this configuration breaks."""
        if self.width % self.heads:
            upper = -(-self.width // self.heads) * self.heads
            yield Fault("width", self.width, f"must be a multiple of heads = {self.heads}", f"use {upper}")
        if self.activation not in ACTIVATIONS:
            yield Fault("activation", self.activation, f"must be one of {sorted(ACTIVATIONS)}", "use 'gelu'")


class Block(nn.Module):
    """Attention and MLP, each with its norm before and its residual around; shaped for `nn.scan`."""

    config: TowerConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B E D"], _: None) -> tuple[Float[Array, "B E D"], None]:
        x = x + self._attention(norm(self.config, self.dtype, "attention_norm")(x))
        return x + self._mlp(norm(self.config, self.dtype, "mlp_norm")(x)), None

    def _attention(self, x: Float[Array, "B E D"]) -> Float[Array, "B E D"]:
        config = self.config
        query, key, value = (
            nn.DenseGeneral(
                (config.heads, config.width // config.heads),
                use_bias=config.key_bias or name != "key",
                dtype=self.dtype,
                kernel_init=partitioned(nn.initializers.lecun_normal(), "embed", "heads", "head"),
                bias_init=partitioned(nn.initializers.zeros, "heads", "head"),
                name=name,
            )(x)
            for name in ("query", "key", "value")
        )
        return nn.DenseGeneral(
            config.width,
            axis=(-2, -1),
            dtype=self.dtype,
            kernel_init=partitioned(nn.initializers.lecun_normal(), "heads", "head", "embed"),
            bias_init=partitioned(nn.initializers.zeros, "embed"),
            name="out",
        )(jax.nn.dot_product_attention(query, key, value))

    def _mlp(self, x: Float[Array, "B E D"]) -> Float[Array, "B E D"]:
        config, activation = self.config, ACTIVATIONS[self.config.activation]
        if config.gated:
            x = norm(config, self.dtype, "gate_norm")(x)
        hidden = activation(dense(config.mlp_width, ("embed", "mlp"), self.dtype, "up")(x))
        if config.gated:
            hidden = hidden * dense(config.mlp_width, ("embed", "mlp"), self.dtype, "gate")(x)
        return dense(config.width, ("mlp", "embed"), self.dtype, "down")(hidden)


class Tower(nn.Module):
    """Patch vectors to features of the same grid; blocks are scanned (parameters stacked on a leading axis)."""

    config: TowerConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, patches: Float[Array, "B Y X D"]) -> Float[Array, "B Y X D"]:
        config = self.config
        batch, rows, columns, width = patches.shape
        x, first = patches.reshape(batch, rows * columns, width), int(config.class_token)
        init = partitioned(nn.initializers.normal(INIT_SCALE), None, "embed")
        if config.class_token:
            token = self.param("class_token", init, (1, width)).astype(self.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, width)), x], axis=1)
        if config.grid != (0, 0):
            count = config.grid[0] * config.grid[1] + first
            x = x + self.param("positions", init, (count, width)).astype(self.dtype)
        if config.norm_before:
            x = norm(config, self.dtype, "norm_before")(x)
        stack = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = stack(config, self.dtype, name="blocks")(x, None)
        x = x[:, first:]
        if config.norm_after:
            x = norm(config, self.dtype, "norm_after")(x)
        return x.reshape(patches.shape)


def norm(config: TowerConfig, dtype: DTypeLike, name: str) -> nn.LayerNorm:
    """A tower's layer norm; statistics in float32."""
    scale_init = partitioned(nn.initializers.ones, "embed")
    bias_init = partitioned(nn.initializers.zeros, "embed")
    return nn.LayerNorm(
        epsilon=config.epsilon,
        dtype=dtype,
        scale_init=scale_init,
        bias_init=bias_init,
        name=name,
        use_fast_variance=False,
    )

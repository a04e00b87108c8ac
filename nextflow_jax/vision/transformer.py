"""The bidirectional pre-norm transformer stack that the ViT, the text tower and the semantic decoder share."""

import dataclasses
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from nextflow_jax.config import Fault

REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What the backward pass finds stored: everything, matrix products only, or each block's input only."""

NORM_EPSILON = 1e-6
INIT_SCALE = 0.02


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a stack of blocks."""

    width: int = 96
    layers: int = 2
    heads: int = 4
    mlp_width: int = 256
    remat: str = "none"
    """A key of REMAT_POLICIES."""

    def faults(self) -> Iterator[Fault]:
        """The rules these sizes break."""
        if self.width % self.heads:
            upper = -(-self.width // self.heads) * self.heads
            yield Fault("width", self.width, f"must be a multiple of heads = {self.heads}", f"use {upper}")
        if self.remat not in REMAT_POLICIES:
            yield Fault("remat", self.remat, f"must be one of {sorted(REMAT_POLICIES)}", "use 'none'")


def partitioned(init: Callable, *axes: str | None) -> Callable:
    """An initialiser whose array carries logical axis names, one a dimension."""
    return nn.with_logical_partitioning(init, axes)


def dense(features: int, axes: tuple[str | None, str | None], dtype: DTypeLike, name: str | None = None) -> nn.Dense:
    """A dense layer with bias whose kernel has logical axes (in, out)."""
    kernel_init = partitioned(nn.initializers.lecun_normal(), *axes)
    bias_init = partitioned(nn.initializers.zeros, axes[1])
    return nn.Dense(features, dtype=dtype, kernel_init=kernel_init, bias_init=bias_init, name=name)


def layer_norm(dtype: DTypeLike, name: str | None = None) -> nn.LayerNorm:
    """Layer norm over the width; statistics in float32."""
    scale_init = partitioned(nn.initializers.ones, "embed")
    bias_init = partitioned(nn.initializers.zeros, "embed")
    return nn.LayerNorm(epsilon=NORM_EPSILON, dtype=dtype, scale_init=scale_init, bias_init=bias_init, name=name)


class Attention(nn.Module):
    """Multi-head attention of queries over keys, with biases; softmax in float32."""

    config: TransformerConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, queries: Float[Array, "B Q D"], keys: Float[Array, "B E D"], mask: Bool[Array, "B E"] | None = None
    ) -> Float[Array, "B Q D"]:
        """`mask` is False at keys that no query may see."""
        query, key, value = (
            self._split(source, name) for source, name in ((queries, "query"), (keys, "key"), (keys, "value"))
        )
        visible = None if mask is None else mask[:, None, None, :]
        mixed = jax.nn.dot_product_attention(query, key, value, mask=visible)
        return nn.DenseGeneral(
            self.config.width,
            axis=(-2, -1),
            dtype=self.dtype,
            kernel_init=partitioned(nn.initializers.lecun_normal(), "heads", "head", "embed"),
            bias_init=partitioned(nn.initializers.zeros, "embed"),
            name="out",
        )(mixed)

    def _split(self, source: Float[Array, "B E D"], name: str) -> Float[Array, "B E H A"]:
        return nn.DenseGeneral(
            (self.config.heads, self.config.width // self.config.heads),
            dtype=self.dtype,
            kernel_init=partitioned(nn.initializers.lecun_normal(), "embed", "heads", "head"),
            bias_init=partitioned(nn.initializers.zeros, "heads", "head"),
            name=name,
        )(source)


class Mlp(nn.Module):
    """Two dense layers with a tanh-approximated GELU between, as in SigLIP."""

    config: TransformerConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B E D"]) -> Float[Array, "B E D"]:
        hidden = nn.gelu(dense(self.config.mlp_width, ("embed", "mlp"), self.dtype, "up")(x), approximate=True)
        return dense(self.config.width, ("mlp", "embed"), self.dtype, "down")(hidden)


class Block(nn.Module):
    """Attention and MLP, each with its norm before and its residual around; shaped for `nn.scan`."""

    config: TransformerConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B E D"], mask: Bool[Array, "B E"] | None) -> tuple[Float[Array, "B E D"], None]:
        normed = layer_norm(self.dtype, "attention_norm")(x)
        x = x + Attention(self.config, self.dtype, name="attention")(normed, normed, mask)
        x = x + Mlp(self.config, self.dtype, name="mlp")(layer_norm(self.dtype, "mlp_norm")(x))
        return x, None


class Transformer(nn.Module):
    """`layers` blocks, scanned (parameters stacked on a leading "layers" axis), then a layer norm."""

    config: TransformerConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B E D"], mask: Bool[Array, "B E"] | None = None) -> Float[Array, "B E D"]:
        """`mask` [B E] is False at padding, which nothing attends to."""
        policy = REMAT_POLICIES[self.config.remat]
        block = Block if policy is None else nn.remat(Block, policy=policy, prevent_cse=False)
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.config.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = stack(self.config, self.dtype, name="blocks")(x, mask)
        return layer_norm(self.dtype, "norm")(x)

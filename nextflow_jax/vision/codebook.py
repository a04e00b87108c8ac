"""The two-part codebook as pure functions: distances, choosing codes, moving-average update, dead-code revival.

A code is one row: its semantic half, then its pixel half. One index stands for both, chosen by the summed distance
(TokenFlow, arXiv 2412.03069, equation 2). Everything here is float32.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from nextflow_jax.config import Fault

NORM_FLOOR = 1e-6
"""Added under square roots and to divisors, so that zero vectors stay zero."""


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
    """Sizes of the codebook, how distances are measured, how codes follow the data."""

    codes: int = 1024
    semantic_dim: int = 8
    """0 = a single codebook, of pixels alone (VQGAN)."""
    pixel_dim: int = 8
    semantic_weight: float = 1.0
    """Weight of the squared distance between semantic halves."""
    pixel_weight: float = 1.0
    normalise: bool = False
    """Compare l2-normalised halves (TokenFlow); the embeddings that are added keep their lengths."""
    decay: float = 0.98
    """Of the moving averages, per step."""
    revive_after: int = 60
    """Steps without use after which a code is re-seeded from the batch."""
    scale_drop: float = 0.5
    """Share of training images that lose a random number of their last scales before decoding."""
    refiners: int = 0
    """VAR's convolutions after upsampling: how many groups of scales have their own; 0 = none."""

    @property
    def dim(self) -> int:
        """Width of a code (C): semantic and pixel half."""
        return self.semantic_dim + self.pixel_dim

    @property
    def dual(self) -> bool:
        """Whether codes have a semantic half."""
        return self.semantic_dim > 0

    def faults(self) -> Iterator[Fault]:
        """The rules this configuration breaks."""
        for name in ("codes", "pixel_dim", "revive_after"):
            if getattr(self, name) < 1:
                yield Fault(name, getattr(self, name), "must be at least 1", "use e.g. 8")
        for name in ("semantic_dim", "semantic_weight", "pixel_weight", "refiners"):
            if getattr(self, name) < 0:
                yield Fault(name, getattr(self, name), "must not be negative", "use 0 to switch it off")
        if not 0 <= self.decay < 1:
            yield Fault("decay", self.decay, "must be in [0, 1)", "use e.g. 0.98")
        if not 0 <= self.scale_drop <= 1:
            yield Fault("scale_drop", self.scale_drop, "is a share of images", "use a value in [0, 1]")


class Codebook(NamedTuple):
    """The codebook and the moving averages it is made of: the variable collection "codebook"."""

    embedding: Float[Array, "V C"]
    cluster_size: Float[Array, "V"]
    """Moving average of how many vectors of a batch chose the code."""
    cluster_sum: Float[Array, "V C"]
    """Moving average of the sum of these vectors."""
    age: Int[Array, "V"]
    """Steps since the code was last chosen."""


def initial_codebook(key: Key[Array, ""], config: QuantizerConfig) -> Codebook:
    """Random codes, all due for revival: the first update seeds each from the data, whether it was chosen or not."""
    embedding = jax.random.normal(key, (config.codes, config.dim), jnp.float32)
    size = jnp.zeros((config.codes,), jnp.float32)
    age = jnp.full((config.codes,), config.revive_after, jnp.int32)
    return Codebook(embedding, size, jnp.zeros_like(embedding), age)


def comparable(vectors: Float[Array, "*B C"], config: QuantizerConfig) -> Float[Array, "*B C"]:
    """Vectors in the space where plain squared distance is the weighted sum of the two halves' distances."""
    vectors = vectors.astype(jnp.float32)
    halves = vectors[..., : config.semantic_dim], vectors[..., config.semantic_dim :]
    if config.normalise:
        halves = tuple(
            half * jax.lax.rsqrt(jnp.sum(jnp.square(half), axis=-1, keepdims=True) + NORM_FLOOR) for half in halves
        )
    weights = config.semantic_weight, config.pixel_weight
    return jnp.concatenate([half * weight**0.5 for half, weight in zip(halves, weights)], axis=-1)


def squared_distances(
    vectors: Float[Array, "*B C"], embedding: Float[Array, "V C"], config: QuantizerConfig
) -> Float[Array, "*B V"]:
    """Weighted squared distance of every vector to every code."""
    points, codes = comparable(vectors, config), comparable(embedding, config)
    point_norms = jnp.sum(jnp.square(points), axis=-1, keepdims=True)
    products = jnp.matmul(points, codes.T, precision=jax.lax.Precision.HIGHEST)
    return point_norms - 2 * products + jnp.sum(jnp.square(codes), axis=-1)


def nearest_codes(distances: Float[Array, "*B V"]) -> Int[Array, "*B"]:
    """The index of the smallest of each vector's distances; the lowest of equals.

    Two plain minima, because XLA's argmin runs four times slower on CPUs.
    """
    smallest = jnp.min(distances, axis=-1, keepdims=True)
    last = distances.shape[-1] - 1
    return jnp.min(jnp.where(distances <= smallest, jnp.arange(last + 1, dtype=jnp.int32), last), axis=-1)


def sample_near_codes(
    key: Key[Array, ""], distances: Float[Array, "*B V"], top_k: int, temperature: float
) -> Int[Array, "*B"]:
    """One of the `top_k` nearest codes of every vector, drawn with probability softmax(-distance / temperature)."""
    negative, candidates = jax.lax.top_k(-distances, top_k)
    choice = jax.random.categorical(key, negative / temperature, axis=-1)
    return jnp.take_along_axis(candidates, choice[..., None], axis=-1)[..., 0].astype(jnp.int32)


def update_codebook(
    codebook: Codebook,
    vectors: Float[Array, "R C"],
    codes: Int[Array, "R"],
    key: Key[Array, ""],
    config: QuantizerConfig,
) -> tuple[Codebook, Float[Array, ""]]:
    """One step of the moving averages over a batch, then revival of codes unused for more than `revive_after` steps.

    Statistics are sums over the whole batch: under jit on a mesh they are global, whatever the sharding.

    Args:
      codebook: the state before.
      vectors: the residuals of the batch, all scales.
      codes: the code each vector chose.
      key: chooses the vectors that dead codes are re-seeded from.
      config: decay and revival.

    Returns:
      The state after, and how many codes were revived.
    """
    weight = 1 - config.decay
    counts = jnp.zeros_like(codebook.cluster_size).at[codes].add(1.0)
    sums = jnp.zeros_like(codebook.cluster_sum).at[codes].add(vectors)
    size = codebook.cluster_size * config.decay + counts * weight
    total = codebook.cluster_sum * config.decay + sums * weight
    filled = size[:, None] > NORM_FLOOR
    embedding = jnp.where(filled, total / jnp.where(filled, size[:, None], 1.0), codebook.embedding)
    age = jnp.where(counts > 0, 0, codebook.age + 1)
    dead = age > config.revive_after
    seeds = vectors[jax.random.randint(key, age.shape, 0, vectors.shape[0])]
    revived = Codebook(
        embedding=jnp.where(dead[:, None], seeds, embedding),
        cluster_size=jnp.where(dead, weight, size),
        cluster_sum=jnp.where(dead[:, None], seeds * weight, total),
        age=jnp.where(dead, 0, age),
    )
    return revived, jnp.sum(dead).astype(jnp.float32)


def usage_statistics(codes: Int[Array, "B n"], num_codes: int) -> dict[str, Float[Array, ""]]:
    """How one scale of a batch uses the codebook.

    Returns:
      "usage": distinct codes over the most there could be (the number of codes or of positions); "perplexity": the
      exponential of the entropy of the codes' histogram.
    """
    counts = jnp.zeros((num_codes,), jnp.float32).at[codes.reshape(-1)].add(1.0)
    shares = counts / codes.size
    entropy = -jnp.sum(jnp.where(counts > 0, shares * jnp.log(jnp.maximum(shares, NORM_FLOOR)), 0.0))
    return {"usage": jnp.sum(counts > 0) / min(num_codes, codes.size), "perplexity": jnp.exp(entropy)}

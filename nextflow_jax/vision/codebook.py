"""The codebook as pure functions: what is compared, what is added, moving averages, revival of dead codes, usage.

A code is one row: its semantic half, then its pixel half. One index stands for both, chosen by the summed distance
(TokenFlow, arXiv 2412.03069, equation 2; the search itself is in nextflow_jax/vision/nearest.py). Everything here is
float32. Two ways for codes to follow the data, `QuantizerConfig.learned`:

- "average": a code is the moving average of the vectors that chose it (VQ-VAE, arXiv 1711.00937, appendix A.1);
- "gradient": the table is the parameter "quantizer/embedding", trained by the loss's `vq` term.

How codes start: drawn from N(0, 1), but due for revival, so that the first training step re-seeds those that it does
not choose from the vectors of its batch; those that it chooses become their vectors' mean ("average"), or have to move
there ("gradient"). That is the seeding of k-means; the moving averages of the steps that follow are its iterations (one
a batch), and codes that get no vectors are seeded anew.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from nextflow_jax.config import Fault

NORM_FLOOR = 1e-6
"""Smaller cluster sizes and shares count as none."""
ZERO_NORM = 1e-12
"""Shorter vectors have no direction: normalised, they are zero (torch's `normalize` has the same limit)."""

CHOICES = {
    "normalise": ("no", "distance", "codes"),
    "learned": ("average", "gradient"),
    "estimator": ("straight_through", "rotation"),
    "dropped_scales": ("last", "one"),
}
"""Field of `QuantizerConfig` -> its values; the first is the default."""


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
    normalise: str = "no"
    """Which l2-normalised halves are used: "no"; "distance", compared, while the codes that are added keep their
    lengths (VAR's `using_znorm`); "codes", compared and added (TokenFlow)."""
    learned: str = "average"
    """How codes follow the data: "average" (moving averages) or "gradient" (a parameter; needs the loss's `vq`)."""
    estimator: str = "straight_through"
    """How gradients pass the quantizer: "straight_through" or "rotation"; see nextflow_jax/vision/estimators.py."""
    entropy_temperature: float = 0.0
    """Of the softmax over codes whose entropies the loss's entropy terms use, e.g. 0.01; 0 = not computed."""
    decay: float = 0.98
    """Of the moving averages, per step."""
    revive_after: int = 60
    """Steps without use after which a code is re-seeded from the batch."""
    scale_drop: float = 0.5
    """Share of training images that lose scales."""
    dropped_scales: str = "last"
    """Which: "last", a random number of the last ones before decoding; "one", any but the first, and the scales after
    it explain what it would have (TokenFlow's code, share 0.1 of the batches)."""
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
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                yield Fault(name, getattr(self, name), f"must be one of {known}", f"use {known[0]!r}")
        for name in ("codes", "pixel_dim", "revive_after"):
            if getattr(self, name) < 1:
                yield Fault(name, getattr(self, name), "must be at least 1", "use e.g. 8")
        for name in ("semantic_dim", "semantic_weight", "pixel_weight", "refiners", "entropy_temperature"):
            if getattr(self, name) < 0:
                yield Fault(name, getattr(self, name), "must not be negative", "use 0 to switch it off")
        if not 0 <= self.decay < 1:
            yield Fault("decay", self.decay, "must be in [0, 1)", "use e.g. 0.98")
        if not 0 <= self.scale_drop <= 1:
            yield Fault("scale_drop", self.scale_drop, "is a share of images", "use a value in [0, 1]")


class Codebook(NamedTuple):
    """Codes and the moving averages they are made of: the variable collection "codebook" with `learned="average"`."""

    embedding: Float[Array, "V C"]
    cluster_size: Float[Array, "V"]
    """Moving average of how many vectors of a batch chose the code."""
    cluster_sum: Float[Array, "V C"]
    """Moving average of the sum of these vectors."""
    age: Int[Array, "V"]
    """Steps since the code was last chosen."""


class Revival(NamedTuple):
    """What revival keeps beside a trained table: the variable collection "codebook" with `learned="gradient"`.

    A code's vector is parameter + shift: revival may not write parameters, so it moves the shift.
    """

    shift: Float[Array, "V C"]
    age: Int[Array, "V"]
    """Steps since the code was last chosen."""


def initial_codes(key: Key[Array, ""], config: QuantizerConfig) -> Float[Array, "V C"]:
    """Random vectors; see the module's docstring for what becomes of them."""
    return jax.random.normal(key, (config.codes, config.dim), jnp.float32)


def initial_codebook(key: Key[Array, ""], config: QuantizerConfig) -> Codebook | Revival:
    """The collection before the first step, every code due for revival."""
    age = jnp.full((config.codes,), config.revive_after, jnp.int32)
    if config.learned == "gradient":
        return Revival(jnp.zeros((config.codes, config.dim), jnp.float32), age)
    embedding = initial_codes(key, config)
    return Codebook(embedding, jnp.zeros((config.codes,), jnp.float32), jnp.zeros_like(embedding), age)


def unit_halves(vectors: Float[Array, "*B C"], config: QuantizerConfig) -> Float[Array, "*B C"]:
    """Both halves of every vector at length 1; halves without a direction are zero, and pass no gradient."""
    return jnp.concatenate([_unit(half) for half in halves_of(vectors, config)], axis=-1)


def halves_of(vectors: Float[Array, "*B C"], config: QuantizerConfig) -> tuple[Array, Array]:
    """(semantic half, pixel half) [..., C_half]; the semantic one of a single codebook is empty."""
    return vectors[..., : config.semantic_dim], vectors[..., config.semantic_dim :]


def added(embedding: Float[Array, "V C"], config: QuantizerConfig) -> Float[Array, "V C"]:
    """What codes add to the feature map."""
    return unit_halves(embedding, config) if config.normalise == "codes" else embedding


def comparable(vectors: Float[Array, "*B C"], config: QuantizerConfig) -> Float[Array, "*B C"]:
    """Vectors in the space where plain squared distance is the weighted sum of the two halves' distances."""
    vectors = vectors.astype(jnp.float32)
    if config.normalise != "no":
        vectors = unit_halves(vectors, config)
    weights = config.semantic_weight, config.pixel_weight
    return jnp.concatenate([half * weight**0.5 for half, weight in zip(halves_of(vectors, config), weights)], axis=-1)


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
    vectors = _averaged(vectors, config)
    weight = 1 - config.decay
    counts = jnp.zeros_like(codebook.cluster_size).at[codes].add(1.0)
    sums = jnp.zeros_like(codebook.cluster_sum).at[codes].add(vectors)
    size = codebook.cluster_size * config.decay + counts * weight
    total = codebook.cluster_sum * config.decay + sums * weight
    filled = size[:, None] > NORM_FLOOR
    embedding = jnp.where(filled, total / jnp.where(filled, size[:, None], 1.0), codebook.embedding)
    age, dead, seeds = _the_dead(codebook.age, counts, vectors, key, config)
    revived = Codebook(
        embedding=jnp.where(dead[:, None], seeds, embedding),
        cluster_size=jnp.where(dead, weight, size),
        cluster_sum=jnp.where(dead[:, None], seeds * weight, total),
        age=age,
    )
    return revived, jnp.sum(dead).astype(jnp.float32)


def update_revival(
    state: Revival,
    parameter: Float[Array, "V C"],
    vectors: Float[Array, "R C"],
    codes: Int[Array, "R"],
    key: Key[Array, ""],
    config: QuantizerConfig,
) -> tuple[Revival, Float[Array, ""]]:
    """Revival of a trained table's dead codes; the arguments are `update_codebook`'s, and the parameter itself."""
    counts = jnp.zeros(state.age.shape, jnp.float32).at[codes].add(1.0)
    age, dead, seeds = _the_dead(state.age, counts, _averaged(vectors, config), key, config)
    shift = jnp.where(dead[:, None], seeds - parameter, state.shift)
    return Revival(shift, age), jnp.sum(dead).astype(jnp.float32)


def usage_statistics(codes: Int[Array, "B n"], num_codes: int) -> dict[str, Float[Array, ""]]:
    """How one scale of a batch uses the codebook.

    Returns:
      "usage": distinct codes over the most there could be (the number of codes or of positions); "unused": how many
      codes nothing chose; "perplexity": the exponential of the entropy of the codes' histogram.
    """
    counts = jnp.zeros((num_codes,), jnp.float32).at[codes.reshape(-1)].add(1.0)
    shares = counts / codes.size
    entropy = -jnp.sum(jnp.where(counts > 0, shares * jnp.log(jnp.maximum(shares, NORM_FLOOR)), 0.0))
    used = jnp.sum(counts > 0)
    return {
        "usage": used / min(num_codes, codes.size),
        "unused": (num_codes - used).astype(jnp.float32),
        "perplexity": jnp.exp(entropy),
    }


def _unit(half: Float[Array, "*B c"]) -> Float[Array, "*B c"]:
    square = jnp.sum(jnp.square(half), axis=-1, keepdims=True)
    directed = square > ZERO_NORM**2
    return jnp.where(directed, half * jax.lax.rsqrt(jnp.where(directed, square, 1.0)), 0.0)


def _averaged(vectors: Float[Array, "R C"], config: QuantizerConfig) -> Float[Array, "R C"]:
    """What codes follow: the vectors themselves, or their directions where codes are directions."""
    return unit_halves(vectors, config) if config.normalise == "codes" else vectors


def _the_dead(
    age: Int[Array, "V"],
    counts: Float[Array, "V"],
    vectors: Float[Array, "R C"],
    key: Key[Array, ""],
    config: QuantizerConfig,
) -> tuple[Int[Array, "V"], Bool[Array, "V"], Float[Array, "V C"]]:
    """Ages after this step, which codes are dead and start anew, and a vector of the batch for each code."""
    age = jnp.where(counts > 0, 0, age + 1)
    dead = age > config.revive_after
    seeds = vectors[jax.random.randint(key, age.shape, 0, vectors.shape[0])]
    return jnp.where(dead, 0, age), dead, seeds

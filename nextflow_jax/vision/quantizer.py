"""Multi-scale residual vector quantisation with two codebooks under one index (recipe section 2)."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from nextflow_jax.config import Fault
from nextflow_jax.scales import ScaleSchedule
from nextflow_jax.vision import residual
from nextflow_jax.vision.codebook import (
    Codebook,
    QuantizerConfig,
    initial_codebook,
    nearest_codes,
    sample_near_codes,
    squared_distances,
    update_codebook,
    usage_statistics,
)
from nextflow_jax.vision.transformer import INIT_SCALE, partitioned

CODEBOOK_AXES = {
    "embedding": ("codes", "code"),
    "cluster_size": ("codes",),
    "cluster_sum": ("codes", "code"),
    "age": ("codes",),
}


@dataclasses.dataclass(frozen=True)
class SelfCorrection:
    """Replaces some of an image's codes by near ones, so that a decoder learns to repair them (recipe section 5)."""

    share: float = 0.6
    """Share of the codes of each scale that are drawn."""
    top_k: int = 10
    """They are drawn from this many nearest codes."""
    temperature: float = 1.0
    """Probability among them is softmax(-squared distance / temperature); distances are in the codebook's units."""

    def faults(self) -> Iterator[Fault]:
        """The rules these settings break."""
        if not 0 <= self.share <= 1:
            yield Fault("share", self.share, "is a share of codes", "use a value in [0, 1]")
        if self.top_k < 1:
            yield Fault("top_k", self.top_k, "must be at least 1", "use e.g. 10")
        if self.temperature <= 0:
            yield Fault("temperature", self.temperature, "must be positive", "use 1.0")


class Quantised(NamedTuple):
    """What the training forward of the quantizer gives."""

    features: Float[Array, "B Y X C"]
    """The accumulated map that decoders see; gradients pass straight through to the encoders."""
    codes: Int[Array, "B N"]
    commitment: tuple[Float[Array, ""], Float[Array, ""]]
    """(sum, weight) of the squared distance between features and the accumulated map after each scale."""
    stats: dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
    """Usage metrics, name to (sum, weight)."""


class Quantizer(nn.Module):
    """Feature maps to codes and back. The codebook is a variable collection of its own, "codebook"."""

    config: QuantizerConfig

    def setup(self) -> None:
        self.state = Codebook(*(self._variable(name) for name in Codebook._fields))
        if self.config.refiners:
            shape = (self.config.refiners, 3, 3, self.config.dim, self.config.dim)
            kernel_init = partitioned(nn.initializers.normal(INIT_SCALE), None, None, None, None, "code")
            self.kernels = self.param("refine_kernels", kernel_init, shape)
            bias_init = partitioned(nn.initializers.zeros, None, "code")
            self.biases = self.param("refine_biases", bias_init, (self.config.refiners, self.config.dim))

    def __call__(
        self, features: Float[Array, "B Y X C"], schedule: ScaleSchedule, *, train: bool, key: Key[Array, ""] | None
    ) -> Quantised:
        """Quantises a batch; when training, drops scales and updates the codebook (collection must be mutable).

        Args:
          features: encoder outputs, semantic half first.
          schedule: the grids; the final one is the features' own.
          train: updates the codebook and drops scales.
          key: needed when training.
        """
        features = features.astype(jnp.float32)
        embedding = self.embedding()
        target = jax.lax.stop_gradient(features)

        def quantise(k: int, rest: Any) -> tuple[Any, tuple[Any, Any]]:
            codes = nearest_codes(squared_distances(rest, embedding, self.config))
            return embedding[codes], (codes.reshape(codes.shape[0], -1), rest.reshape(-1, self.config.dim))

        with jax.default_matmul_precision("highest"):
            maps, kept = residual.encode_scales(schedule, target, quantise, self.refinement())
        codes = [scale_codes for scale_codes, _ in kept]
        accumulated, stats = maps[-1], _usage(codes, self.config.codes)
        if train:
            drop_key, revive_key = jax.random.split(key)
            accumulated = self._drop_scales(drop_key, maps)
            vectors = jnp.concatenate([vectors for _, vectors in kept])
            indices = jnp.concatenate([scale_codes.reshape(-1) for scale_codes in codes])
            stats["codebook/revived"] = self._update(vectors, indices, revive_key), jnp.ones(())
        return Quantised(
            features=accumulated + (features - target),
            codes=jnp.concatenate(codes, axis=1),
            commitment=_commitment(features, maps),
            stats=stats,
        )

    def encode(
        self,
        features: Float[Array, "B Y X C"],
        schedule: ScaleSchedule,
        keys: Key[Array, "B"] | None = None,
        self_correction: SelfCorrection | None = None,
    ) -> tuple[Int[Array, "B N"], Int[Array, "B N"]]:
        """Codes of a batch: (inputs, targets), equal unless self-correction draws some of the inputs.

        The target is the nearest code of the residual that is really left, drawn codes before it included.

        Args:
          features: encoder outputs.
          schedule: the grids.
          keys: one for each row of the batch; needed with self-correction.
          self_correction: share of drawn codes and their candidates.
        """
        embedding = self.embedding()
        top_k = 0 if self_correction is None else min(self_correction.top_k, self.config.codes)

        def quantise(k: int, rest: Any) -> tuple[Any, tuple[Any, Any]]:
            distances = squared_distances(rest, embedding, self.config)
            targets = inputs = nearest_codes(distances)
            if self_correction is not None:
                scale_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, k)
                draw = functools.partial(_draw_inputs, top_k=top_k, how=self_correction)
                inputs = jax.vmap(draw)(scale_keys, distances, targets)
            return embedding[inputs], (inputs.reshape(rest.shape[0], -1), targets.reshape(rest.shape[0], -1))

        with jax.default_matmul_precision("highest"):
            _, kept = residual.encode_scales(schedule, features.astype(jnp.float32), quantise, self.refinement())
        return tuple(jnp.concatenate(codes, axis=1) for codes in zip(*kept))

    def accumulate(self, codes: Int[Array, "B N"], schedule: ScaleSchedule) -> list[Float[Array, "B Y X C"]]:
        """The accumulated map after each scale, from codes."""
        with jax.default_matmul_precision("highest"):
            return residual.accumulate(schedule, self.embedding()[codes], self.refinement())

    def embedding(self) -> Float[Array, "V C"]:
        """The codes' vectors."""
        return self.state.embedding.value

    def refinement(self) -> residual.Refinement | None:
        """The convolutions after upsampling; None when the configuration has none."""
        return residual.Refinement(self.kernels, self.biases) if self.config.refiners else None

    def _variable(self, name: str) -> nn.Variable:
        def init() -> Array:
            return getattr(initial_codebook(self.make_rng("params"), self.config), name)

        return self.variable("codebook", name, partitioned(init, *CODEBOOK_AXES[name]))

    def _update(self, vectors: Float[Array, "R C"], codes: Int[Array, "R"], key: Key[Array, ""]) -> Float[Array, ""]:
        before = Codebook(*(variable.value for variable in self.state))
        after, revived = update_codebook(before, vectors, codes, key, self.config)
        for variable, value in zip(self.state, after):
            variable.value = value
        return revived

    def _drop_scales(self, key: Key[Array, ""], maps: list[Float[Array, "B Y X C"]]) -> Float[Array, "B Y X C"]:
        """A share of the images keep only their first 1 ... K-1 scales, all numbers alike."""
        batch, num_scales = maps[0].shape[0], len(maps)
        if num_scales == 1:
            return maps[0]
        drop_key, count_key = jax.random.split(key)
        dropped = jax.random.bernoulli(drop_key, self.config.scale_drop, (batch,))
        fewer = jax.random.randint(count_key, (batch,), 1, num_scales)
        kept = jnp.where(dropped, fewer, num_scales)[:, None, None, None]
        result = maps[-1]
        for k, accumulated in enumerate(maps[:-1]):
            result = jnp.where(kept == k + 1, accumulated, result)
        return result


def _draw_inputs(
    key: Key[Array, ""], distances: Float[Array, "y x V"], targets: Int[Array, "y x"], top_k: int, how: SelfCorrection
) -> Int[Array, "y x"]:
    drawn_key, code_key = jax.random.split(key)
    drawn = jax.random.bernoulli(drawn_key, how.share, targets.shape)
    return jnp.where(drawn, sample_near_codes(code_key, distances, top_k, how.temperature), targets)


def _commitment(
    features: Float[Array, "B Y X C"], maps: list[Float[Array, "B Y X C"]]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    errors = [
        jnp.mean(jnp.square(features - jax.lax.stop_gradient(accumulated)), axis=(1, 2, 3)) for accumulated in maps
    ]
    return jnp.sum(jnp.stack(errors)), jnp.asarray(len(maps) * features.shape[0], jnp.float32)


def _usage(codes: list[Int[Array, "B _"]], num_codes: int) -> dict[str, tuple[Array, Array]]:
    stats, one = {}, jnp.ones((), jnp.float32)
    scales = {f"scale_{k + 1}": scale_codes for k, scale_codes in enumerate(codes)}
    for scale, scale_codes in {**scales, "all_scales": jnp.concatenate(codes, axis=1)}.items():
        for name, value in usage_statistics(scale_codes, num_codes).items():
            stats[f"codebook/{name}/{scale}"] = (value, one)
    return stats

"""Multi-scale residual vector quantisation with two codebooks under one index (recipe section 2)."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from nextflow_jax.config import Fault
from nextflow_jax.scales import ScaleSchedule
from nextflow_jax.vision import codebook, estimators, nearest, residual
from nextflow_jax.vision.codebook import Codebook, QuantizerConfig, Revival
from nextflow_jax.vision.entropy import choice_entropies
from nextflow_jax.vision.transformer import INIT_SCALE, partitioned

SumWeight = tuple[Float[Array, ""], Float[Array, ""]]

CODEBOOK_AXES = {
    "embedding": ("codes", "code"),
    "cluster_size": ("codes",),
    "cluster_sum": ("codes", "code"),
    "shift": ("codes", "code"),
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
    """What the training forward of the quantizer gives; losses and metrics are (sum, weight)."""

    features: Float[Array, "B Y X C"]
    """The accumulated map that decoders see; gradients pass to the encoders as `config.estimator` says."""
    codes: Int[Array, "B N"]
    commitment: SumWeight
    """Squared distance of the features to the accumulated map after each scale, which is held constant."""
    vq: SumWeight | None
    """The same distance with the features held constant; None where codes are moving averages."""
    entropy_sample: SumWeight | None
    """Entropy of the vectors' soft choices; None unless `config.entropy_temperature` is positive."""
    entropy_batch: SumWeight | None
    """What the entropy of the batch's average choice lacks to the largest, log V; None like `entropy_sample`."""
    stats: dict[str, SumWeight]
    """Metrics of the codebook."""


class Quantizer(nn.Module):
    """Feature maps to codes and back. Codes and their statistics are a variable collection of its own, "codebook";
    with `learned="gradient"` the codes themselves are the parameter "embedding"."""

    config: QuantizerConfig

    def setup(self) -> None:
        if self.config.learned == "gradient":
            table_init = partitioned(lambda key: codebook.initial_codes(key, self.config), *CODEBOOK_AXES["embedding"])
            self.table = self.param("embedding", table_init)
        kind = Revival if self.config.learned == "gradient" else Codebook
        self.state = kind(*(self._variable(name) for name in kind._fields))
        if self.config.refiners:
            shape = (self.config.refiners, 3, 3, self.config.dim, self.config.dim)
            kernel_init = partitioned(nn.initializers.normal(INIT_SCALE), None, None, None, None, "code")
            self.kernels = self.param("refine_kernels", kernel_init, shape)
            bias_init = partitioned(nn.initializers.zeros, None, "code")
            self.biases = self.param("refine_biases", bias_init, (self.config.refiners, self.config.dim))

    def __call__(
        self,
        features: Float[Array, "B Y X C"],
        schedule: ScaleSchedule,
        *,
        train: bool,
        key: Key[Array, ""] | None,
        update_codebook: bool = True,
    ) -> Quantised:
        """Quantises a batch; when training, drops scales and updates the codebook (collection must be mutable).

        Args:
          features: encoder outputs, semantic half first.
          schedule: the grids; the final one is the features' own.
          train: updates the codebook and drops scales.
          key: needed when training.
          update_codebook: False leaves the collection "codebook" as it is: no moving averages, no revival.
        """
        features = features.astype(jnp.float32)
        table = self._table()
        embedding, compared = codebook.added(table, self.config), codebook.comparable(table, self.config)
        target = jax.lax.stop_gradient(features)
        drop_key, revive_key = jax.random.split(key) if train else (None, None)
        present = self._skipped_scale(drop_key, features.shape[0], schedule.num_scales) if train else None

        def quantise(k: int, rest: Any) -> tuple[Any, tuple[Any, Any]]:
            codes = nearest.nearest_codes(codebook.comparable(rest, self.config), compared)
            return embedding[codes], (codes.reshape(codes.shape[0], -1), rest.reshape(-1, self.config.dim))

        with jax.default_matmul_precision("highest"):
            maps, kept = residual.encode_scales(schedule, target, quantise, self.refinement(), present)
            entropy_sample, entropy_batch = self._entropies(features, maps, compared, schedule)
        codes = [scale_codes for scale_codes, _ in kept]
        vectors = jnp.concatenate([vectors for _, vectors in kept])
        indices = jnp.concatenate([scale_codes.reshape(-1) for scale_codes in codes])
        stats = _usage(codes, self.config.codes)
        stats |= _health(target, maps[-1])
        if self.config.dual:
            stats["codebook/semantic_share"] = _semantic_share(vectors, compared[indices], self.config)
        accumulated = maps[-1]
        if train:
            if self.config.dropped_scales == "last":
                accumulated = self._drop_last_scales(drop_key, maps)
            if update_codebook:
                stats["codebook/revived"] = self._update(vectors, indices, revive_key), jnp.ones(())
        return Quantised(
            features=self._pass_gradients(features, accumulated),
            codes=jnp.concatenate(codes, axis=1),
            commitment=_distance_to_maps(features, jax.lax.stop_gradient(maps)),
            vq=_distance_to_maps(target, maps) if self.config.learned == "gradient" else None,
            entropy_sample=entropy_sample,
            entropy_batch=entropy_batch,
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
        table = self._table()
        embedding, compared = codebook.added(table, self.config), codebook.comparable(table, self.config)

        def quantise(k: int, rest: Any) -> tuple[Any, tuple[Any, Any]]:
            points = codebook.comparable(rest, self.config)
            targets = inputs = nearest.nearest_codes(points, compared)
            if self_correction is not None:
                near = nearest.near_codes(points, compared, min(self_correction.top_k, self.config.codes))
                scale_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, k)
                draw = functools.partial(_draw_inputs, how=self_correction)
                inputs = jax.vmap(draw)(scale_keys, *near, targets)
            return embedding[inputs], (inputs.reshape(rest.shape[0], -1), targets.reshape(rest.shape[0], -1))

        with jax.default_matmul_precision("highest"):
            _, kept = residual.encode_scales(schedule, features.astype(jnp.float32), quantise, self.refinement())
        return tuple(jnp.concatenate(codes, axis=1) for codes in zip(*kept))

    def accumulate(self, codes: Int[Array, "B N"], schedule: ScaleSchedule) -> list[Float[Array, "B Y X C"]]:
        """The accumulated map after each scale, from codes."""
        with jax.default_matmul_precision("highest"):
            return residual.accumulate(schedule, self.embedding()[codes], self.refinement())

    def embedding(self) -> Float[Array, "V C"]:
        """What each code adds to the feature map."""
        return codebook.added(self._table(), self.config)

    def refinement(self) -> residual.Refinement | None:
        """The convolutions after upsampling; None when the configuration has none."""
        return residual.Refinement(self.kernels, self.biases) if self.config.refiners else None

    def _table(self) -> Float[Array, "V C"]:
        """The codes as they are kept, before any normalisation."""
        if self.config.learned == "gradient":
            return jnp.asarray(self.table) + self.state.shift.value
        return jnp.asarray(self.state.embedding.value)

    def _variable(self, name: str) -> nn.Variable:
        def init() -> Array:
            return getattr(codebook.initial_codebook(self.make_rng("params"), self.config), name)

        return self.variable("codebook", name, partitioned(init, *CODEBOOK_AXES[name]))

    def _update(self, vectors: Float[Array, "R C"], codes: Int[Array, "R"], key: Key[Array, ""]) -> Float[Array, ""]:
        before = type(self.state)(*(variable.value for variable in self.state))
        if self.config.learned == "gradient":
            table = jax.lax.stop_gradient(self.table)
            after, revived = codebook.update_revival(before, table, vectors, codes, key, self.config)
        else:
            after, revived = codebook.update_codebook(before, vectors, codes, key, self.config)
        for variable, value in zip(self.state, after):
            variable.value = value
        return revived

    def _pass_gradients(
        self, features: Float[Array, "B Y X C"], accumulated: Float[Array, "B Y X C"]
    ) -> Float[Array, "B Y X C"]:
        """The map, with the encoders' gradients. Where the codes are trained, by the `vq` loss alone (VAR, VQ-VAE)."""
        if self.config.learned == "gradient":
            accumulated = jax.lax.stop_gradient(accumulated)
        if self.config.estimator == "rotation":
            halves = [width for width in (self.config.semantic_dim, self.config.pixel_dim) if width]
            return estimators.rotation(features, accumulated, halves)
        return estimators.straight_through(features, accumulated)

    def _entropies(
        self,
        features: Float[Array, "B Y X C"],
        maps: list[Float[Array, "B Y X C"]],
        compared: Float[Array, "V C"],
        schedule: ScaleSchedule,
    ) -> tuple[SumWeight, SumWeight] | tuple[None, None]:
        """(entropy_sample, entropy_batch) over all scales, with gradients to features, and to codes that are trained.

        The maps before each scale are held constant, as in TokenFlow.
        """
        if not self.config.entropy_temperature:
            return None, None
        batch, before = features.shape[0], [residual.start(schedule, features), *jax.lax.stop_gradient(maps[:-1])]
        rests = [residual.residual_at(schedule, k, features, accumulated) for k, accumulated in enumerate(before)]
        points = jnp.concatenate([rest.reshape(batch, -1, self.config.dim) for rest in rests], axis=1)
        points = codebook.comparable(points, self.config)
        sample, of_average = choice_entropies(points, compared, self.config.entropy_temperature)
        count = jnp.asarray(points.shape[0] * points.shape[1], jnp.float32)
        return (sample, count), (math.log(self.config.codes) - of_average, jnp.ones((), jnp.float32))

    def _skipped_scale(self, key: Key[Array, ""], batch: int, num_scales: int) -> list[Bool[Array, "B"]] | None:
        """With `dropped_scales="one"`: for each scale, which images have it; a share misses one after the first."""
        if self.config.dropped_scales != "one" or num_scales == 1:
            return None
        drop_key, scale_key = jax.random.split(key)
        dropped = jax.random.bernoulli(drop_key, self.config.scale_drop, (batch,))
        missing = jnp.where(dropped, jax.random.randint(scale_key, (batch,), 1, num_scales), num_scales)
        return [missing != k for k in range(num_scales)]

    def _drop_last_scales(self, key: Key[Array, ""], maps: list[Float[Array, "B Y X C"]]) -> Float[Array, "B Y X C"]:
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
    key: Key[Array, ""],
    distances: Float[Array, "y x K"],
    candidates: Int[Array, "y x K"],
    targets: Int[Array, "y x"],
    how: SelfCorrection,
) -> Int[Array, "y x"]:
    drawn_key, code_key = jax.random.split(key)
    drawn = jax.random.bernoulli(drawn_key, how.share, targets.shape)
    return jnp.where(drawn, nearest.draw_near(code_key, distances, candidates, how.temperature), targets)


def _distance_to_maps(features: Float[Array, "B Y X C"], maps: list[Float[Array, "B Y X C"]]) -> SumWeight:
    errors = [jnp.mean(jnp.square(features - accumulated), axis=(1, 2, 3)) for accumulated in maps]
    return jnp.sum(jnp.stack(errors)), jnp.asarray(len(maps) * features.shape[0], jnp.float32)


def _health(features: Float[Array, "B Y X C"], accumulated: Float[Array, "B Y X C"]) -> dict[str, SumWeight]:
    """Signs of collapse: the features' variance over the batch, and the share of it that the codes do not explain.

    A variance near zero, or a commitment loss near zero while this share is large, means that encoders have given up.
    """
    spread = jnp.sum(jnp.square(features - jnp.mean(features, axis=(0, 1, 2))))
    error = jnp.sum(jnp.square(features - jax.lax.stop_gradient(accumulated)))
    return {
        "codebook/feature_variance": (spread, jnp.asarray(features.size, jnp.float32)),
        "codebook/unexplained": (error, jnp.maximum(spread, codebook.NORM_FLOOR)),
    }


def _semantic_share(vectors: Float[Array, "R C"], chosen: Float[Array, "R C"], config: QuantizerConfig) -> SumWeight:
    """Share of the semantic halves in the distances of vectors to their codes."""
    squares = jnp.square(codebook.comparable(vectors, config) - jax.lax.stop_gradient(chosen))
    return jnp.sum(codebook.halves_of(squares, config)[0]), jnp.maximum(jnp.sum(squares), codebook.NORM_FLOOR)


def _usage(codes: list[Int[Array, "B _"]], num_codes: int) -> dict[str, SumWeight]:
    stats, one = {}, jnp.ones((), jnp.float32)
    scales = {f"scale_{k + 1}": scale_codes for k, scale_codes in enumerate(codes)}
    for scale, scale_codes in {**scales, "all_scales": jnp.concatenate(codes, axis=1)}.items():
        for name, value in codebook.usage_statistics(scale_codes, num_codes).items():
            stats[f"codebook/{name}/{scale}"] = (value, one)
    return stats

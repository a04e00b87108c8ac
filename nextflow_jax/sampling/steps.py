"""One step of cached decoding: the decoder's inputs for one token, or for one scale of a picture, of every row.

The layout is that of nextflow_jax/sequence.py, here for R rows that stand at different lengths and times.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nextflow_jax.models.cache import KVCache
from nextflow_jax.models.decoder import DecoderInputs
from nextflow_jax.scales import ScaleSchedule
from nextflow_jax.sequence import ScaleLayout, SequenceConfig
from nextflow_jax.vision import residual


class Rows(NamedTuple):
    """Where every row stands between phases. With guidance R = 2B, the guided half first; else R = B."""

    cache: KVCache
    time: Float[Array, "R"]
    """Time of the next position; it differs from the cache's length, which counts every cell of a scale."""
    last: Float[Array, "B D"]
    """Hidden state of the last position of the guided half: what the next text token is drawn from."""

    @property
    def length(self) -> Int[Array, "R"]:
        """Positions each row holds."""
        return self.cache.length


class ScaleFeatures(NamedTuple):
    """What makes a scale's input from codes with accumulated inputs; None stands for residual inputs."""

    codebook: Float[Array, "V C"]
    refinement: residual.Refinement | None


def token_inputs(
    rows: Rows, tokens: Int[Array, "R"], num_scales: int, config: SequenceConfig, features: ScaleFeatures | None
) -> DecoderInputs:
    """The inputs of one text or special token a row.

    Args:
      rows: where the rows stand.
      tokens: unified ids.
      num_scales: K of the picture that `<boi>` opens; 0 for every other token.
      config: gives the number of taps.
      features: None with residual inputs.
    """
    inputs = DecoderInputs.zeros(len(tokens), 1, config.taps)
    return inputs._replace(
        tokens=tokens[:, None],
        positions=jnp.broadcast_to(rows.time[:, None, None], (len(tokens), 1, 3)),
        num_scales=jnp.full((len(tokens), 1), num_scales, jnp.int32),
        attend_end=rows.length[:, None] + 1,
        vision_features=None if features is None else jnp.zeros((len(tokens), 1, features.codebook.shape[1])),
    )


def scale_inputs(
    rows: Rows, layout: ScaleLayout, pad: int, codes: Int[Array, "R n"], features: Float[Array, "R cells C"] | None
) -> DecoderInputs:
    """The inputs of one scale of every row's picture.

    Args:
      rows: where the rows stand; `time` is still that of `<boi>`.
      layout: from `sequence.scale_layout`.
      pad: the id that stands at vision positions.
      codes: of the scale before.
      features: accumulated inputs of this scale; None with residual inputs.
    """
    num_rows, shape = len(codes), (len(codes), layout.cells)

    def everywhere(value: Any) -> Array:
        return jnp.broadcast_to(jnp.asarray(value), shape)

    time = rows.time[:, None] + layout.time_offset
    return DecoderInputs(
        tokens=everywhere(jnp.int32(pad)),
        vision_ids=codes[:, layout.gather],
        vision_weights=jnp.broadcast_to(jnp.asarray(layout.weights), (num_rows, *layout.weights.shape)),
        positions=jnp.stack([everywhere(time), everywhere(layout.rows), everywhere(layout.columns)], axis=-1),
        scale_index=everywhere(jnp.int32(layout.scale)),
        num_scales=everywhere(jnp.int32(layout.num_scales)),
        attend_start=everywhere(jnp.int32(0)),
        attend_end=everywhere(rows.length[:, None] + layout.cells),
        vision_features=features,
    )


def accumulated_inputs(
    features: ScaleFeatures, schedule: ScaleSchedule, k: int, accumulated: Array | None, codes: Int[Array, "R n"]
) -> tuple[Array, Float[Array, "R cells C"]]:
    """Adds scale k's codes (k from 0) to the map of the coarser ones; gives the map and the inputs of scale k+1.

    Args:
      features: the tokenizer's codebook and convolutions.
      schedule: the picture's grids.
      k: the scale, from 0.
      accumulated: the map so far, None before scale 0.
      codes: of scale k.
    """
    embeddings = features.codebook[codes].reshape(len(codes), *schedule.grids[k], -1)
    with jax.default_matmul_precision("highest"):
        before = residual.start(schedule, embeddings) if accumulated is None else accumulated
        accumulated = residual.add_scale(schedule, k, before, embeddings, features.refinement)
        inputs = residual.next_scale_features(schedule, k, accumulated)
    return accumulated, inputs.reshape(len(codes), -1, inputs.shape[-1])


def keep_inactive(cache: KVCache, before: KVCache, active: Bool[Array, "R"]) -> KVCache:
    """The cache after a step, moved on for active rows only: what the others wrote lies past their length, unseen."""
    return cache.rewind(jnp.where(active, cache.length, before.length))

"""Attention by ranges with the mask written out: the meaning that faster implementations are tested against."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nextflow_jax.ops.attention.kept import keep


def visible_keys(start: Int[Array, "B S"], end: Int[Array, "B S"], num_keys: int) -> Bool[Array, "B S M"]:
    """The dense mask of the ranges."""
    index_M = jnp.arange(num_keys)
    return (start[..., None] <= index_M) & (index_M < end[..., None])


def attend(
    q: Float[Array, "B S H A"],
    k: Float[Array, "B M G A"],
    v: Float[Array, "B M G A"],
    start: Int[Array, "B S"],
    end: Int[Array, "B S"],
) -> Float[Array, "B S H A"]:
    """See `nextflow_jax.ops.attention.attend`. Holds H x S x M scores."""
    repeats = q.shape[2] // k.shape[2]
    k_BMHA = jnp.repeat(k, repeats, axis=2).astype(jnp.float32)
    v_BMHA = jnp.repeat(v, repeats, axis=2).astype(jnp.float32)
    scores = jnp.einsum("BSHA,BMHA->BHSM", q.astype(jnp.float32), k_BMHA) * q.shape[-1] ** -0.5
    visible = visible_keys(start, end, k.shape[1])[:, None]
    weights = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(jnp.float32).min), axis=-1)
    out = jnp.einsum("BHSM,BMHA->BSHA", jnp.where(visible, weights, 0.0), v_BMHA)
    return keep(out.astype(q.dtype))

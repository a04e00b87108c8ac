"""Temperature, top-k and top-p as pure functions of logits, and the draw itself. Settings are traced: no recompilation.

A dropped candidate has logit -inf, so the log-softmax of filtered logits is the log-probability under the distribution
that is really sampled from, which is what reinforcement learning and rescoring need.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num, UInt32

from nextflow_jax.ops.categorical import categorical, first_largest
from nextflow_jax.sharding import platform

_CACHED = 2**19
"""Logits that a CPU filters at once: the search reads them 64 times over, from caches more than twice as fast."""


def keep_candidates(
    logits: Float[Array, "*B V"], top_k: Float[Array, "*B"], top_p: Float[Array, "*B"]
) -> Bool[Array, "*B V"]:
    """Which candidates survive top-k, then top-p among those.

    Args:
      logits: finite, or -inf for what is not a candidate.
      top_k: how many of the largest logits survive; 0 keeps all. Of equal logits, the lower index goes first.
      top_p: the fewest likeliest survivors of top-k whose probabilities sum to at least this much of them survive.

    Returns:
      The survivors; at least one of each row.
    """
    rows, size = logits.reshape(-1, logits.shape[-1]), logits.shape[-1]
    block = max(1, _CACHED // size)
    if platform() != "cpu" or len(rows) <= block:
        return _keep(logits, top_k, top_p)
    blocks = -(-len(rows) // block)

    def split(x: Array) -> Array:
        x = x.reshape(len(rows), *x.shape[logits.ndim - 1 :])
        x = jnp.pad(x, ((0, blocks * block - len(rows)), *((0, 0),) * (x.ndim - 1)))
        return x.reshape(blocks, block, *x.shape[1:])

    keep = jax.lax.map(lambda part: _keep(*part), (split(logits), split(top_k), split(top_p)))
    return keep.reshape(-1, size)[: len(rows)].reshape(logits.shape)


def _keep(logits: Float[Array, "*B V"], top_k: Float[Array, "*B"], top_p: Float[Array, "*B"]) -> Bool[Array, "*B V"]:
    order = _ordered_bits(logits)
    count = jnp.where(top_k > 0, top_k, logits.shape[-1])[..., None]
    keep = jax.lax.cond(
        jnp.any(top_k > 0),
        lambda: _keep_first(order, jnp.ones(order.shape, jnp.int32), count.astype(jnp.int32)),
        lambda: jnp.ones(order.shape, bool),
    )
    # Rounding may leave the sum a little short of 1: top_p = 1 has to mean all.
    all_of_them = top_p[..., None] >= 1
    probabilities = jax.nn.softmax(jnp.where(keep, logits, -jnp.inf), axis=-1)
    likeliest = jax.lax.cond(
        jnp.any(top_p < 1),
        lambda: _keep_first(jnp.where(keep, order, 0), probabilities, top_p[..., None]),
        lambda: keep,
    )
    return keep & (likeliest | all_of_them)


def filter_logits(
    logits: Float[Array, "*B V"], temperature: Float[Array, "*B"], top_k: Float[Array, "*B"], top_p: Float[Array, "*B"]
) -> Float[Array, "*B V"]:
    """Logits of the distribution to draw from, dropped candidates at -inf. Temperature 0 leaves the most likely alone.

    Args:
      logits: as the model gives them, after guidance.
      temperature: divides them, before the filters.
      top_k: see `keep_candidates`.
      top_p: see `keep_candidates`.
    """
    greedy = temperature <= 0
    scaled = logits / jnp.where(greedy, 1.0, temperature)[..., None]
    most_likely = jnp.arange(logits.shape[-1]) == first_largest(logits)[..., None]
    # Filtering a large vocabulary costs more than drawing from it, and greedy batches need none.
    filtering = jnp.any(~greedy & ((top_k > 0) | (top_p < 1)))
    keep = jax.lax.cond(filtering, keep_candidates, lambda x, *_: jnp.ones(x.shape, bool), scaled, top_k, top_p)
    return jnp.where(jnp.where(greedy[..., None], most_likely, keep), scaled, -jnp.inf)


def sample(
    key: Key[Array, "B"],
    logits: Float[Array, "B S V"],
    temperature: Float[Array, "B S"],
    top_k: Float[Array, "B S"],
    top_p: Float[Array, "B S"],
) -> tuple[Int[Array, "B S"], Float[Array, "B S"]]:
    """Tokens, and their log-probabilities under the distribution they were drawn from.

    Args:
      key: one a row, so that a row's draw does not depend on the others.
      logits: of S independent draws a row, after guidance.
      temperature: see `filter_logits`.
      top_k: see `keep_candidates`.
      top_p: see `keep_candidates`.
    """

    def most_likely() -> tuple[Int[Array, "B S"], Float[Array, "B S"]]:
        return first_largest(logits), jnp.zeros(logits.shape[:-1], jnp.float32)

    # Random numbers for a whole vocabulary take longer than the rest of a small model.
    all_greedy = jnp.all(temperature <= 0)
    return jax.lax.cond(all_greedy, most_likely, lambda: _draw(key, filter_logits(logits, temperature, top_k, top_p)))


def in_parts(
    draw: Callable[[Array, Array], tuple[Array, Array]],
    hidden: Float[Array, "R S D"],
    key: Key[Array, "B"],
    most: int,
) -> tuple[Int[Array, "B S"], Float[Array, "B S"]]:
    """`draw(hidden, key)`; of more than `most` positions, equal parts one after another, each with its own keys.

    What is drawn depends on S and `most`, so `most` must not depend on anything but the model.

    Args:
      draw: makes tokens and log-probabilities of [R, n, D] hidden states and a key a request.
      hidden: of S positions.
      key: of each request.
      most: positions of a part at most.
    """
    rows, length, width = hidden.shape
    if length <= most:
        return draw(hidden, key)
    parts = -(-length // max(most, 1))
    size = -(-length // parts)
    hidden = jnp.pad(hidden, ((0, 0), (0, parts * size - length), (0, 0)))
    hidden = jnp.swapaxes(hidden.reshape(rows, parts, size, width), 0, 1)
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    drawn = jax.lax.map(lambda part: draw(part[0], fold(key, part[1])), (hidden, jnp.arange(parts)))
    tokens, log_probs = (jnp.swapaxes(x, 0, 1).reshape(len(key), parts * size)[:, :length] for x in drawn)
    return tokens, log_probs


def _draw(key: Key[Array, "B"], logits: Float[Array, "B S V"]) -> tuple[Int[Array, "B S"], Float[Array, "B S"]]:
    tokens = categorical(key, logits)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return tokens, jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]


def _keep_first(
    order: UInt32[Array, "*B V"], weights: Num[Array, "*B V"], wanted: Num[Array, "*B 1"]
) -> Bool[Array, "*B V"]:
    """The fewest candidates, in descending `order` and of equals by index, whose weights sum to at least `wanted`.

    The place of the cut is found bit by bit: 32 sums over the vocabulary, several times faster than sorting it. Equals
    have equal weights; integers sum faster than floats.
    """

    def try_bit(i: Int[Array, ""], cut: UInt32[Array, "*B 1"]) -> UInt32[Array, "*B 1"]:
        higher = cut | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        enough = jnp.sum(jnp.where(order >= higher, weights, 0), axis=-1, keepdims=True) >= wanted
        return jnp.where(enough, higher, cut)

    cut = jax.lax.fori_loop(0, 32, try_bit, jnp.zeros(wanted.shape, jnp.uint32))
    above, equal = order > cut, order == cut
    short = wanted - jnp.sum(jnp.where(above, weights, 0), axis=-1, keepdims=True)
    weight = jnp.max(jnp.where(equal, weights, 0), axis=-1, keepdims=True)
    room = jnp.ceil(short / jnp.maximum(weight, jnp.finfo(jnp.float32).tiny))
    # Numbering the equals takes as long as a dozen of the sums, and without ties there is nothing to number.
    tied = jnp.any(jnp.sum(equal, axis=-1, keepdims=True) > room)
    first = jax.lax.cond(tied, lambda: equal & (jnp.cumsum(equal, axis=-1) <= room), lambda: equal)
    return above | first


def _ordered_bits(values: Float[Array, "*B V"]) -> UInt32[Array, "*B V"]:
    """Float32 values as integers in the same order: the sign bit turned, and all others of negative values."""
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    negative = bits >> 31 == 1
    return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))

"""Temperature, top-k and top-p as pure functions of logits, and the draw itself. Settings are traced: no recompilation.

A dropped candidate has logit -inf, so the log-softmax of filtered logits is the log-probability under the distribution
that is really sampled from, which is what reinforcement learning and rescoring need.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


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
    ranked = -jnp.sort(-logits, axis=-1)
    rank = jnp.arange(logits.shape[-1])
    within_k = (rank < top_k[..., None]) | (top_k[..., None] <= 0)
    probabilities = jax.nn.softmax(jnp.where(within_k, ranked, -jnp.inf), axis=-1)
    mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # Rounding may leave the sum a little short of 1: top_p = 1 has to mean all.
    within_p = (mass_before < top_p[..., None]) | (top_p[..., None] >= 1)
    count = jnp.maximum(jnp.sum(within_k & within_p, axis=-1, keepdims=True), 1)
    # The survivors are the first `count` of the ranking: everything above the last one's logit, and of those equal to
    # it, as many as there is room for.
    threshold = jnp.take_along_axis(ranked, count - 1, axis=-1)
    above, equal = logits > threshold, logits == threshold
    room = count - jnp.sum(above, axis=-1, keepdims=True)
    return above | (equal & (jnp.cumsum(equal, axis=-1) <= room))


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
    most_likely = jnp.arange(logits.shape[-1]) == jnp.argmax(logits, axis=-1)[..., None]
    # Sorting a large vocabulary costs more than the rest, and greedy or unfiltered batches need none.
    filtering = jnp.any(~greedy & ((top_k > 0) | (top_p < 1)))
    keep = jax.lax.cond(filtering, keep_candidates, lambda x, *_: jnp.ones(x.shape, bool), scaled, top_k, top_p)
    return jnp.where(jnp.where(greedy[..., None], most_likely, keep), scaled, -jnp.inf)


def draw(key: Key[Array, "B"], logits: Float[Array, "B S V"]) -> tuple[Int[Array, "B S"], Float[Array, "B S"]]:
    """Tokens drawn from filtered logits, and their log-probabilities.

    Args:
      key: one a row, so that a row's draw does not depend on the others.
      logits: of S independent draws a row.
    """
    tokens = jax.vmap(jax.random.categorical)(key, logits).astype(jnp.int32)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return tokens, jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]

"""A text model's tables grown to the unified vocabulary: where new ids get their first rows from; pure functions.

    ids    0 ... text_size-1   pad bos eos boi eoi   code 0 ...                        unused
    row    the checkpoint's,   of its twin, or the   connector(codebook row), scaled   the mean
           bit for bit         mean of text rows     to the text rows' mean norm

A special's twin is a text id of the checkpoint that means the same, as its config.json says: <bos> and <eos> have one
each (<|endoftext|> and, of models that answer, <|im_end|>), <boi> and <eoi> those that open and close pictures in the
vision-language models (<|vision_start|>, <|vision_end|>); <pad> has none. The mean of the old rows is what leaves the
old distribution nearly as it was when a softmax grows (J. Hewitt, "Initializing new word embeddings for
pretrained language models", 2021). Codes start from the tokenizer's codebook (recipe section 4), which has another
width: the model's own connector brings it to theirs.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nextflow_jax.vocabulary import SPECIALS, Vocabulary


def grow_rows(
    rows: Float[Array, "V D"],
    vocabulary: Vocabulary,
    twins: Mapping[str, int],
    codes: Float[Array, "codes D"] | None = None,
) -> Float[Array, "V D"]:
    """A table of all ids from one whose text rows alone mean something.

    Args:
      rows: by unified id; those from `text_size` on are replaced.
      vocabulary: of the grown model.
      twins: special -> text id whose row it starts with; specials that are not named start as the mean.
      codes: rows of the codes, from `code_rows`; None where the table has none (a separate text head).
    """
    dtype, mean = rows.dtype, mean_row(rows, vocabulary.text_size)
    specials = jnp.stack([rows[twins[name]] if name in twins else mean.astype(dtype) for name in SPECIALS])
    new = specials if codes is None else jnp.concatenate([specials, codes.astype(dtype)])
    tail = len(rows) - vocabulary.text_size - len(new)
    unused = jnp.broadcast_to(mean.astype(dtype), (tail, rows.shape[1]))
    return jnp.concatenate([rows[: vocabulary.text_size], new, unused])


def code_rows(features: Float[Array, "codes D"], text: Float[Array, "V D"], text_size: int) -> Float[Array, "codes D"]:
    """Rows of codes from their features at the model's width: scaled alike, to the mean norm of the text rows.

    Args:
      features: the codebook through the connector; as it is where it has the model's width.
      text: the table whose rows they join.
      text_size: how many of its rows, from the first, are text's.
    """
    features = features.astype(jnp.float32)
    wanted, found = mean_norm(text, text_size), mean_norm(features, len(features))
    return features * (wanted / jnp.maximum(found, jnp.finfo(jnp.float32).tiny))


def mean_row(rows: Float[Array, "V D"], count: int) -> Float[Array, "D"]:
    """The mean of the first `count` rows, float32."""
    return jnp.sum(_first(rows, count), axis=0) / count


def mean_norm(rows: Float[Array, "V D"], count: int) -> Float[Array, ""]:
    """The mean length of the first `count` rows, float32."""
    return jnp.sum(jnp.linalg.norm(_first(rows, count), axis=1)) / count


def _first(rows: Float[Array, "V D"], count: int) -> Float[Array, "V D"]:
    """The rows in float32, those after the first `count` zero: a shape that stays split over devices as it is."""
    kept = jax.lax.broadcasted_iota(jnp.int32, (len(rows), 1), 0) < count
    return jnp.where(kept, rows.astype(jnp.float32), 0.0)

"""Other text ids than a decoder's source has: specials and codes lie behind them, so their rows move."""

import pathlib
from collections.abc import Mapping

from nextflow_jax.convert.qwen2_5 import TOKENS, id_axes
from nextflow_jax.errors import UserError
from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.text import TextTokenizer
from nextflow_jax.training.warm_start import MovedEntries
from nextflow_jax.vocabulary import Vocabulary


def moved_ids(theirs: Vocabulary, model: DecoderConfig) -> Mapping[str, MovedEntries]:
    """Where the entries of each array with an axis of ids go, by name; none where there are as many text ids.

    Args:
      theirs: vocabulary of the source.
      model: of the new run.
    """
    if model.vocabulary.text_size == theirs.text_size:
        return {}
    ids, moved = theirs.ids_within(model.vocabulary), {}
    for name, axis in id_axes(model).items():
        # A text head of its own ends with the specials.
        count = len(ids) if name == TOKENS or model.head == "shared" else theirs.vision_offset
        moved[f"params/{name}"] = MovedEntries(axis, ids[:count])
    return moved


def check_growth(theirs: Vocabulary, ours: Vocabulary) -> None:
    """Refuses a vocabulary that is smaller than the one it should have grown from.

    Raises:
      UserError: names the size.
    """
    for name in ("text_size", "codebook_size"):
        there, here = getattr(theirs, name), getattr(ours, name)
        if here < there:
            raise UserError(
                f"config.init_from.grow: the source has {name} {there} and this model {here}; use the source's "
                "tokenizers, or larger ones that begin as they do, or let the arrays start anew (fresh)"
            )


def check_same_beginning(theirs: TextTokenizer, ours: TextTokenizer, source: pathlib.Path) -> None:
    """Refuses a text tokenizer that gives ids of the source another meaning.

    Args:
      theirs: of the source.
      ours: of the new run.
      source: where theirs is.

    Raises:
      UserError: names the first id that differs.
    """
    for index, (there, here) in enumerate(zip(theirs.pieces(), ours.pieces())):
        if there != here:
            raise UserError(
                f"config.init_from.grow: text id {index} is {there!r} in {source} and {here!r} in the shards; a grown "
                "tokenizer must begin as the source's: add to that one, and extract again"
            )

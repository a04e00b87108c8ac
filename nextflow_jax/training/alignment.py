"""Alignment: which parameters train when new vision parts meet a language model's weights (recipe section 5)."""

from typing import NamedTuple

from nextflow_jax.config import choose
from nextflow_jax.models.decoder_config import DecoderConfig

Rows = tuple[str, int, int, int]
"""(parameter, axis, first entry, the one after the last)."""

STEPS = {"joint": ("connector", "head"), "connector": ("connector",), "head": ("head",)}
"""Step -> what of the two it trains."""


class TrainedPart(NamedTuple):
    """Values of the fields of `OptimizerConfig` that have these names."""

    freeze: tuple[str, ...]
    train_rows: tuple[Rows, ...]


def alignment_freeze(model: DecoderConfig, step: str = "joint", *, new_inputs: bool = False) -> TrainedPart:
    """Trains the connector and the head's new rows, those of specials and codes, and nothing else.

    Args:
      model: its vocabulary says which rows are new, its heads where they are. A tied head shares them with the token
        table, whose new rows then train.
      step: "joint" (NextFlow), or of two steps, one run after the other, "connector" or "head".
      new_inputs: with the connector, also the other new inputs: scale embeddings, the gain of the scale-count encoding
        and the specials' rows of the token table. Without, they stay as they began until pretraining.

    Raises:
      UserError: an unknown step.
    """
    parts = choose("alignment step", step, STEPS)
    whole: list[str] = []
    rows: list[Rows] = []
    if "connector" in parts:
        whole.append("embedding/connector/")
        if new_inputs:
            whole += _scale_inputs(model)
            rows.append(("embedding/tokens", 0, model.vocabulary.text_size, model.vocabulary.vision_offset))
    if "head" in parts:
        whole += ["head/vision_kernel$"] if model.head == "separate" else []
        rows.append(_new_head_rows(model))
    trained = "|".join([*whole, *(f"{name}$" for name, *_ in rows)])
    return TrainedPart(freeze=(f"^(?!{trained})",), train_rows=tuple((f"^{name}$", *where) for name, *where in rows))


def _scale_inputs(model: DecoderConfig) -> list[str]:
    switches = {"scales": model.scale_embeddings, "scale_count_gain": model.scale_count_encoding}
    return [f"embedding/{name}$" for name, there in switches.items() if there]


def _new_head_rows(model: DecoderConfig) -> Rows:
    """Where the head has the ids that the language model had not."""
    vocabulary = model.vocabulary
    last = vocabulary.vision_offset if model.head == "separate" else vocabulary.used
    if model.tied_head:
        return ("embedding/tokens", 0, vocabulary.text_size, last)
    return ("head/text_kernel" if model.head == "separate" else "head/kernel", 1, vocabulary.text_size, last)

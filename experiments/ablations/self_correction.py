"""Self-correction with residual and with accumulated inputs: four decoders on text to image. (NextFlow, Figure 10)

The quickstart's decoder at 250 steps, on text to image alone: at 500 every variant draws nearly all pictures right,
and nothing can be told apart. Inputs of a scale are the codes of the scale before
(`residual`) or the sum over all scales before (`accumulated`, as in VAR); `_corrected`: 60% of the codes that make the
inputs are drawn among the ten nearest, while the targets stay the nearest. Pictures are drawn at temperature 1 without
filters, where a scale has to live with what the scales before it drew.

Command (everything, three seeds, then a table):

    python -m experiments.ablations.studies self_correction --out runs/studies

Cost: not measured yet.

Result: not measured yet.
"""

import ml_collections

from experiments.ablations.base import draw_only, quickstart_decoder
from nextflow_jax.config import read_variant

VARIANTS = ("residual", "residual_corrected", "accumulated", "accumulated_corrected")
TOKENIZERS = dict.fromkeys(VARIANTS, "experiments/openmoji/quickstart.py:tokenizer")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """`variant`: one of VARIANTS; optionally `,smoke`."""
    name, switches = read_variant(variant, list(VARIANTS), ("smoke",))
    config = draw_only(quickstart_decoder(f"self-correction, {name}", switches), steps=250)
    inputs, _, corrected = name.partition("_")
    config.pipeline.sequence.inputs = inputs
    if not corrected:
        config.extraction.draws = 1
        config.extraction.self_correction.share = 0.0
    config.evaluation.sampling.update(temperature=1.0, top_k=0)
    return config

"""Self-correction with residual and with accumulated inputs: four decoders on text to image. (NextFlow, Figure 10)

The quickstart's decoder at 250 steps, on text to image alone: at 500 every variant draws nearly all pictures right,
and nothing can be told apart. Inputs of a scale are the codes of the scale before
(`residual`) or the sum over all scales before (`accumulated`, as in VAR); `_corrected`: 60% of the codes that make the
inputs are drawn among the ten nearest, while the targets stay the nearest. Pictures are drawn at temperature 1 without
filters, where a scale has to live with what the scales before it drew.

Command (everything, three seeds, then a table):

    python -m experiments.ablations.studies self_correction --out runs/studies

Cost: 130 to 380 s of training a run on one CPU core beside other work, and about a minute of measuring.

Result: (the command above; mean and deviation of three seeds; nats a code; 200 training captions drawn)

    inputs        corrected   vision loss, train   validation         retrieval@1        among originals
    residual      no          1.872 +- 0.052       8.159 +- 0.074     0.788 +- 0.008     0.655 +- 0.022
    residual      yes         3.099 +- 0.055       7.325 +- 0.079     0.433 +- 0.018     0.368 +- 0.018
    accumulated   no          2.035 +- 0.050       8.072 +- 0.051     0.772 +- 0.065     0.618 +- 0.055
    accumulated   yes         3.140 +- 0.042       7.307 +- 0.053     0.480 +- 0.018     0.410 +- 0.018

Not the paper's order. There self-correction helps residual inputs and hurts accumulated ones; here it costs both over a
third of the pictures, accumulated inputs a little less. What is measured is how fast 438 pictures are learned by heart,
and four noisy draws of each take longer than one clean one. On pictures never seen the corrected decoders are better by
0.8 nats, whatever the inputs: noise keeps them from learning by heart. Residual and accumulated inputs are within the
spread of seeds.
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

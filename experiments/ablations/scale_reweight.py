"""Weights of scales at a finer resolution: all tokens alike, or alpha = 0.9? (NextFlow, Figure 11)

The quickstart's decoder on pictures of 64 pixels in six scales (1, 2, 3, 4, 6, 8 cells a side, 130 codes, 77% of
them in the two finest), on text to image alone: `plain` weighs every code alike, `reweighted` by 1/(h*w)^0.9.

Command (everything, three seeds, then a table with the loss of every scale):

    python -m experiments.ablations.studies scale_reweight --out runs/studies

Cost: not measured yet.

Result: not measured yet.
"""

import ml_collections

from experiments.ablations.base import draw_only, quickstart_decoder
from nextflow_jax.config import read_variant

VARIANTS = ("plain", "reweighted")
TOKENIZERS = dict.fromkeys(VARIANTS, "experiments/ablations/tokenizer.py:dual")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """`variant`: plain or reweighted; optionally `,smoke`."""
    name, switches = read_variant(variant, list(VARIANTS), ("smoke",))
    config = draw_only(quickstart_decoder(f"scale weights, {name}", switches), steps=800)
    config.pictures.size = (64, 64)
    config.train.batch_size = 3
    config.pipeline.row_length = 512
    config.pipeline.sequence.scale_reweight = 0.9 if name == "reweighted" else 0.0
    return config

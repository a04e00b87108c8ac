"""Weights of scales at a finer resolution: all tokens alike, or alpha = 0.9? (NextFlow, Figure 11)

The quickstart's decoder on pictures of 64 pixels in six scales (1, 2, 3, 4, 6, 8 cells a side, 130 codes, 77% of
them in the two finest), on text to image alone: `plain` weighs every code alike, `reweighted` by 1/(h*w)^0.9.

Command (everything, three seeds, then a table with the loss of every scale):

    python -m experiments.ablations.studies scale_reweight --out runs/studies

Cost: 520 to 1,470 s of training a run on one CPU core beside other work, and about two minutes of measuring.

Result: (the command above; mean and deviation of three seeds; nats a code, without the weights; 200 captions drawn)

                        training                                  validation
    cells a side    plain             reweighted           plain             reweighted
    1               1.537 +- 0.184    0.295 +- 0.045       2.347 +- 0.134    3.990 +- 0.173
    2               3.529 +- 0.153    2.186 +- 0.102       5.583 +- 0.121    6.050 +- 0.014
    3               3.678 +- 0.090    3.376 +- 0.050       5.025 +- 0.120    4.996 +- 0.055
    4               3.717 +- 0.048    3.764 +- 0.020       5.037 +- 0.068    4.983 +- 0.073
    6               4.080 +- 0.056    4.339 +- 0.011       4.812 +- 0.058    4.824 +- 0.033
    8               3.581 +- 0.091    4.363 +- 0.027       4.826 +- 0.068    4.974 +- 0.048
    all             3.726 +- 0.078    4.116 +- 0.011       4.866 +- 0.041    4.961 +- 0.043

    retrieval@1     0.050 +- 0.010    0.113 +- 0.003
    among originals 0.048 +- 0.010    0.102 +- 0.014

The paper's direction: the coarse scales, which decide what is drawn, are learned far better, the finest worse, and
twice as many pictures are the right one although the mean loss is higher. On captions never seen there is nothing to
gain: what the coarse scales learned is learned by heart.
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

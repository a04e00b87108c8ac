"""Does text-only data hurt text to image? None of it, or a quarter of the tokens. (NextFlow, Table 1)

The quickstart's decoder at 250 steps of equally many tokens. `text_0` sees text to image alone, so `text_25` sees a
quarter less of it: its rest are the text documents that OpenMoji's names make (groups, definitions, members).

Command (everything, three seeds, then a table):

    python -m experiments.ablations.studies text_share --out runs/studies

Cost: 77 to 87 s of training a run on one CPU core, and about a minute of measuring.

Result: (the command above; mean and deviation of three seeds; nats a token; 200 training captions drawn)

                              no text             a quarter text
    vision loss, train         3.080 +- 0.029      3.879 +- 0.019
    text loss, train           0.004 +- 0.001      0.590 +- 0.012
    vision loss, validation    7.295 +- 0.071      6.950 +- 0.051
    text loss, validation     14.482 +- 0.323      2.471 +- 0.086
    retrieval@1                0.817 +- 0.046      0.490 +- 0.013
    among originals            0.710 +- 0.065      0.420 +- 0.049

Not the paper's "no harm": at equally many tokens the pictures lose, since 438 pictures are being learned by heart and a
quarter of the passes over them is gone. (Without text documents the only text trained on is the token that opens an
image, so the text losses do not compare.) On pictures never seen text costs nothing: the loss is lower, as of every run
here that learned less by heart.
"""

import ml_collections

from experiments.ablations.base import draw_only, quickstart_decoder
from nextflow_jax.config import read_variant

VARIANTS = ("text_0", "text_25")
TOKENIZERS = dict.fromkeys(VARIANTS, "experiments/openmoji/quickstart.py:tokenizer")

TEXT_DOCUMENTS = 0.4
"""Share of the documents that makes 25% of the tokens: 18 positions a text, 37 a picture and its caption."""


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """`variant`: text_0 or text_25; optionally `,smoke`."""
    name, switches = read_variant(variant, list(VARIANTS), ("smoke",))
    config = draw_only(quickstart_decoder(f"share of text, {name}", switches), steps=250)
    config.extraction.tasks = ("text_to_image", "text")
    if name == "text_25":
        config.pipeline.mixture.weights = (("text_to_image", 1 - TEXT_DOCUMENTS), ("text", TEXT_DOCUMENTS))
    return config

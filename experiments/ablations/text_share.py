"""Does text-only data hurt text to image? None of it, or a quarter of the tokens. (NextFlow, Table 1)

The quickstart's decoder at 250 steps of equally many tokens. `text_0` sees text to image alone, so `text_25` sees a
quarter less of it: its rest are the text documents that OpenMoji's names make (groups, definitions, members).

Command (everything, three seeds, then a table):

    python -m experiments.ablations.studies text_share --out runs/studies

Cost: not measured yet.

Result: not measured yet.
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

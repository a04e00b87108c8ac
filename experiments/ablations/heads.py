"""One output head for text and vision, or one each? (NextFlow, Figure 9)

The quickstart's decoder at 800 steps, on its whole mixture of tasks, with the shared head over the unified vocabulary
(`shared`) and with a head for text and one for codes (`separate`), each a softmax over its own ids alone.

Command (everything, three seeds, then a table):

    python -m experiments.ablations.studies heads --out runs/studies

Cost: not measured yet.

Result: not measured yet.
"""

import ml_collections

from experiments.ablations.base import quickstart_decoder
from nextflow_jax.config import read_variant

VARIANTS = ("shared", "separate")
TOKENIZERS = dict.fromkeys(VARIANTS, "experiments/openmoji/quickstart.py:tokenizer")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """`variant`: shared or separate; optionally `,smoke`."""
    name, switches = read_variant(variant, list(VARIANTS), ("smoke",))
    config = quickstart_decoder(f"heads, {name}", switches)
    config.model.head = name
    return config

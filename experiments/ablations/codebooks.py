"""Does a decoder learn the codes of a dual codebook more easily than those of a single one? (NextFlow, Figure 8)

The same small decoder learns text to image on shards made by the tokenizers `dual` and `single` of
experiments/ablations/tokenizer.py, with as many steps and codes. Compared is its vision loss (cross-entropy a code, in
nats, without the loss's weights): in training, and on the validation pictures' documents, which it never saw. Both
codebooks have 512 codes and every picture 130, so that the figures compare.

Command (with the tokenizers, three seeds, both data sets, then one table):

    python experiments/ablations/run.py --out runs/ablations --seeds 0 1 2

By hand, for this file F, a tokenizer's run T and a folder R of your choice:

    python -m nextflow_jax.extract --config F:dual --tokenizer T --out R/shards
    python -m nextflow_jax.train --config F:dual --workdir R/decoder --config.pipeline.shards=R/shards
    python experiments/ablations/vision_loss.py --workdir R/decoder

Cost: sized for 120 s of training a run on two idle CPU cores, and 30 s of extraction.

Result: not run yet.
"""

import ml_collections

from nextflow_jax.config import read_variant, to_config_dict
from nextflow_jax.training.experiment import DecoderExperiment

VARIANTS = ("dual", "single")
"""What the tests build and lay out."""

TOKENIZERS = {
    "dual": "experiments/ablations/tokenizer.py:dual",
    "single": "experiments/ablations/tokenizer.py:single",
}
"""Variant -> the tokenizer of its shards."""

SIZE = (64, 64)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """`variant`: dual or single, whose settings are equal; optionally a data set, and `,smoke`."""
    name, switches = read_variant(variant, list(VARIANTS), ("openmoji", "photographs", "smoke"))
    data = "photographs" if "photographs" in switches else "openmoji"
    config = to_config_dict(DecoderExperiment())
    config.name = f"codebook ablation {name}, {data}"
    config.pictures.update(name=data, size=SIZE, subset="all")
    config.train.update(steps=400, batch_size=3, log_every=50, checkpoint_every=200)
    config.optimizer.update(learning_rate=4e-3, warmup_steps=60)
    config.extraction.update(tasks=("text_to_image",), draws=2)
    # As in the quickstart: at temperature 1 half of the fine codes are redrawn.
    config.extraction.self_correction.temperature = 0.1
    config.extraction.text.vocab_size = 1000
    config.model.rope_base = 100.0
    config.pipeline.update(row_length=512, response_only=True, drop_too_long=True)
    config.pipeline.mixture.weights = (("text_to_image", 1.0),)
    if "smoke" in switches:
        config.pictures.subset = "tiny"
        config.extraction.draws = 1
        config.extraction.text.vocab_size = 400
        config.train.update(steps=20, log_every=5, checkpoint_every=10)
        config.optimizer.warmup_steps = 5
        config.pipeline.window_batches = 2
        config.model.layers = 2
    return config

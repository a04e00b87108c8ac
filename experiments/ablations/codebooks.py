"""Does a decoder learn the codes of a dual codebook more easily than those of a single one? (NextFlow, Figure 8)

The same small decoder learns text to image on shards made by the tokenizers `dual` and `single` of
experiments/ablations/tokenizer.py, with as many steps and codes. Compared is its vision loss (cross-entropy a code, in
nats, without the loss's weights): in training, and on the validation pictures' documents, which it never saw. Both
codebooks have 512 codes and every picture 130, so that the figures compare.

Command (with the tokenizers, three seeds, both data sets, then one table):

    python -m experiments.ablations.run --out runs/ablations --seeds 0 1 2

By hand, for this file F, a tokenizer's run T and a folder R of your choice:

    python -m nextflow_jax.extract --config F:dual --tokenizer T --out R/shards
    python -m nextflow_jax.train --config F:dual --workdir R/decoder --config.pipeline.shards=R/shards
    python -m experiments.ablations.decoder_losses --workdir R/decoder

Cost: 400 steps take 90 to 200 s on one CPU core, extraction and measuring a minute (two chains of runs side by side).

Result: (the command above; mean and deviation of three seeds, nats a code)

    pictures      codes of   validation       train            perplexity of the codes (train)
    openmoji      dual       4.836 +- 0.036   4.757 +- 0.056   421
    openmoji      single     5.123 +- 0.026   5.121 +- 0.020   402
    photographs   dual       5.595 +- 0.079   5.132 +- 0.014   329
    photographs   single     5.395 +- 0.095   5.331 +- 0.009   364

As in the paper's Figure 8, a decoder learns dual codes more easily although they rebuild pictures a little worse (see
tokenizer.py): by 0.36 nats on OpenMoji, whose dual codes are the more varied, and by 0.20 on the photographs' training
crops, of which 0.10 would follow from dual codes being less varied there (log of the perplexities). On crops of the
three photographs never trained on the order is the other way round by 0.20: from seven photographs the decoder learns
them by heart, and both are worse there than in training.
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

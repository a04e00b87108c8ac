"""The whole system on 610 OpenMoji pictures of 32 pixels, on two CPU cores, in about sixteen minutes.

What it shows: every part of NextFlow at toy size. A dual encoder (the teacher), the dual-codebook multi-scale tokenizer
distilled from it, and one decoder for text to image, captions, edits, frames and interleaved documents. Of the
pictures 438 are for training, 60 bases with their skin tones among them; 72 combinations of base and tone are held out
and 100 pictures are for validation.

Command (sets up the environment, runs all stages, writes runs/quickstart/report/index.html):

    bash launch/quickstart.sh

Stages by hand, for this file F: `train --config F:contrastive`, `F:tokenizer`, `extract --config F:decoder`,
`train --config F:decoder`. Adding `,smoke` to a variant makes everything tiny.

Cost: 2 CPU cores, 15 min 43 s in a fresh clone: install 66 s, contrastive 93, tokenizer 150, extract 19, decoder 570,
export 3, evaluate 39, report 2 (the command above; jax 0.10.2, Python 3.11).

Result: (runs/quickstart/metrics.json of that run, seed 0) PSNR 25.52 dB on training pictures, 15.72 dB on validation
ones; all 1024 codes used; text to image retrieval@1 0.980 among reconstructions, 0.825 among originals (0.865 with
perfect codes); captions 0.950 exact; edits 0.945. Held out (72): right base 0.778, right tone 0.167 with a chance of
0.167, retrieval@1 0.028: no composition at this size.

What mattered (one seed each). On an earlier tokenizer of 21.5 dB: RoPE base 100 in place of 1e4 brought the decoder's
loss at step 600 from 1.58 to 1.08; self-correction at temperature 0.1 in place of 1.0 brought it at step 260 from 4.18
(a run of 2500 steps) to 3.07 (of 2000). On this tokenizer: 2000 steps with captions at weight 1 and share 0.2 gave
0.845 exact captions and 0.975 retrieval@1.
"""

import ml_collections

from nextflow_jax.config import read_variant, to_config_dict
from nextflow_jax.training.experiment import ContrastiveExperiment, DecoderExperiment, TokenizerExperiment

TARGETS = (
    ("psnr_train", 21.0),
    ("codebook_usage", 0.95),
    ("t2i_retrieval_at_1", 0.95),
    ("t2i_retrieval_at_1_originals", 0.75),
    ("caption_exact_match", 0.90),
    ("edit_retrieval_at_1", 0.80),
)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """`variant`: contrastive, tokenizer or decoder (the default), and optionally `,smoke`."""
    kind, switches = read_variant(variant, list(STAGES))
    config = STAGES[kind]()
    config.name = f"quickstart {kind}"
    if "smoke" in switches:
        _shrink(config)
    return config


def _contrastive() -> ml_collections.ConfigDict:
    config = to_config_dict(ContrastiveExperiment())
    config.train.update(steps=400, batch_size=64, log_every=20, checkpoint_every=100)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=50)
    return config


def _tokenizer() -> ml_collections.ConfigDict:
    config = to_config_dict(TokenizerExperiment(teacher="runs/quickstart/contrastive"))
    config.train.update(steps=1500, batch_size=32, log_every=50, checkpoint_every=250)
    config.optimizer.update(learning_rate=5e-3, warmup_steps=50, weight_decay=0.0)
    config.init_from_teacher = True
    # Convolutions on fine grids are slow on a CPU: the stem cuts patches of the whole stride.
    config.model.pixel.update(stem=8, multipliers=(1,), encoder_base=128, decoder_base=128, latent=128)
    config.model.quantizer.scale_drop = 0.1
    return config


def _decoder() -> ml_collections.ConfigDict:
    config = to_config_dict(DecoderExperiment())
    config.train.update(steps=2600, batch_size=6, log_every=20, checkpoint_every=200)
    config.optimizer.update(learning_rate=4e-3, warmup_steps=60)
    # At temperature 1 half of the fine codes are redrawn, and targets that answer so much noise are slow to learn.
    config.extraction.self_correction.temperature = 0.1
    # With 16 frequencies a base of 1e4 leaves neighbouring columns of a grid hardly apart (they get the slowest six).
    config.model.rope_base = 100.0
    config.pipeline.update(shards="runs/quickstart/shards", row_length=256, response_only=True, last_scale_context=True)
    # A caption has few tokens beside a picture's 30 codes, and neighbouring skin tones take long to tell apart.
    config.pipeline.sequence.text_weight = 2.0
    config.pipeline.mixture.weights = (
        ("text_to_image", 0.35),
        ("image_to_text", 0.33),
        ("edit", 0.2),
        ("frames", 0.02),
        ("interleaved", 0.06),
        ("text", 0.04),
    )
    config.evaluation.targets = TARGETS
    return config


def _shrink(config: ml_collections.ConfigDict) -> None:
    """Everything that makes a run long or large, as small as it works."""
    config.pictures.subset = "tiny"
    config.train.update(steps=20, log_every=5, checkpoint_every=10)
    config.optimizer.warmup_steps = 5
    if config.kind == "decoder":
        config.extraction.draws = 1
        config.pipeline.window_batches = 2
        config.model.layers = 2
        config.evaluation.update(prompts=4, edits=4, heldout=3, shown=2, max_text_tokens=8)
    else:
        config.train.batch_size = 8
        config.model.vit.transformer.layers = 1
    if config.kind == "tokenizer":
        config.model.quantizer.codes = 64


STAGES = {"contrastive": _contrastive, "tokenizer": _tokenizer, "decoder": _decoder}

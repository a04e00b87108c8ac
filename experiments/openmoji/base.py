"""All 3,900 OpenMoji pictures at 64 pixels, captions in 14 languages, every task: an hour on one accelerator.

What it is for: what the quickstart is too small to show. Generalisation to unseen combinations of base and skin tone
(`heldout` in metrics.json), captions in many languages, longer scale schedules (8x8 grid, 6 scales, 130 codes a
picture), bfloat16. Change one line to ask a question: no semantic codes, more edits, accumulated inputs, 128 pixels.

Commands, for this file F and a folder R of your choice:

    python -m nextflow_jax.train    --config F:contrastive --workdir R/contrastive
    python -m nextflow_jax.train    --config F:tokenizer   --workdir R/tokenizer --config.teacher=R/contrastive
    python -m nextflow_jax.extract  --config F:decoder     --tokenizer R/tokenizer --out R/shards
    python -m nextflow_jax.train    --config F:decoder     --workdir R/decoder --config.pipeline.shards=R/shards
    python -m nextflow_jax.export   --workdir R/decoder --out R/bundle
    python -m nextflow_jax.evaluate --bundle R/bundle --config F:decoder --out R
    python -m nextflow_jax.report   R

Adding `,smoke` to a variant makes everything tiny: minutes on a laptop's CPU.

Cost: sized for one accelerator of about 100 TFLOP/s in bfloat16 and an hour.

Result: not run at full size yet, for want of an accelerator; traced, and its smoke variant trained in the tests.
"""

import ml_collections

from nextflow_jax.config import read_variant, to_config_dict
from nextflow_jax.training.experiment import ContrastiveExperiment, DecoderExperiment, TokenizerExperiment

SIZE = (64, 64)
STRIDE = 8
GRID = (SIZE[0] // STRIDE, SIZE[1] // STRIDE)
LADDER = (1, 2, 3, 4, 6, 8)
LANGUAGES = ("en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar")
TEACHER_WIDTH = 256


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """`variant`: contrastive, tokenizer or decoder (the default), and optionally `,smoke`."""
    kind, switches = read_variant(variant, list(STAGES))
    config = STAGES[kind]()
    config.name = f"openmoji base {kind}"
    config.pictures.update(size=SIZE, subset="all", languages=LANGUAGES)
    if "smoke" in switches:
        _shrink(config)
    return config


def _contrastive() -> ml_collections.ConfigDict:
    config = to_config_dict(ContrastiveExperiment())
    config.train.update(steps=4000, batch_size=512, log_every=50, checkpoint_every=1000)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=200)
    config.text.vocab_size = 8000
    _set_vit(config.model.vit)
    config.model.text.update(width=TEACHER_WIDTH, layers=4, heads=4, mlp_width=1024)
    config.model.update(embedding_dim=256, max_text_tokens=48, dtype="bfloat16")
    return config


def _tokenizer() -> ml_collections.ConfigDict:
    config = to_config_dict(TokenizerExperiment(teacher="runs/base/contrastive"))
    config.train.update(steps=20_000, batch_size=256, log_every=100, checkpoint_every=2000)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=500, weight_decay=0.01, ema_decay=0.999)
    config.init_from_teacher = True
    config.model.family.update(ladder=LADDER, stride=STRIDE, sizes=(SIZE,))
    _set_vit(config.model.vit)
    config.model.pixel.update(encoder_base=96, decoder_base=128, encoder_blocks=2, decoder_blocks=2, latent=128)
    config.model.quantizer.update(codes=4096, semantic_dim=16, pixel_dim=8)
    config.model.semantic_decoder.update(width=TEACHER_WIDTH, layers=2, heads=4, mlp_width=1024)
    config.model.update(teacher_width=TEACHER_WIDTH, dtype="bfloat16")
    return config


def _decoder() -> ml_collections.ConfigDict:
    config = to_config_dict(DecoderExperiment())
    config.train.update(steps=15_000, batch_size=32, log_every=100, checkpoint_every=1000)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=500, ema_decay=0.999)
    config.extraction.update(draws=2, batch_size=256)
    config.extraction.self_correction.temperature = 0.1
    config.extraction.text.vocab_size = 8000
    config.pipeline.update(shards="runs/base/shards", row_length=1024, last_scale_context=True)
    config.pipeline.sequence.scale_reweight = 0.9
    config.pipeline.mixture.weights = (
        ("text_to_image", 0.45),
        ("image_to_text", 0.2),
        ("edit", 0.2),
        ("frames", 0.02),
        ("interleaved", 0.08),
        ("text", 0.05),
    )
    config.model.update(
        layers=8,
        width=512,
        heads=8,
        kv_heads=4,
        head_size=64,
        mlp_width=1536,
        rope_sections=(8, 12, 12),
        rope_base=100.0,
        initializer_range=0.02,
        dtype="bfloat16",
    )
    return config


def _set_vit(vit: ml_collections.ConfigDict) -> None:
    """The vision tower that teacher and semantic encoder share."""
    vit.update(patch=STRIDE, position_grid=GRID)
    vit.transformer.update(width=TEACHER_WIDTH, layers=6, heads=4, mlp_width=1024)


def _shrink(config: ml_collections.ConfigDict) -> None:
    """Everything that makes a run long or large, as small as it works; shapes of pictures and schedules stay."""
    config.pictures.subset = "tiny"
    config.train.update(steps=20, batch_size=8, log_every=5, checkpoint_every=10)
    config.optimizer.warmup_steps = 5
    if config.kind == "contrastive":
        config.text.vocab_size = 1000
        config.model.text.layers = 1
    if config.kind == "tokenizer":
        config.model.quantizer.codes = 64
        config.model.pixel.update(encoder_base=32, decoder_base=32, encoder_blocks=1, decoder_blocks=1)
    if config.kind == "decoder":
        config.extraction.draws = 1
        config.extraction.text.vocab_size = 1000
        config.pipeline.update(window_batches=2, drop_too_long=True)
        config.model.update(layers=1, width=64, heads=2, kv_heads=2, head_size=32, mlp_width=128)
        config.model.rope_sections = (4, 6, 6)
        config.evaluation.update(prompts=4, edits=4, heldout=3, shown=2, max_text_tokens=8)
    else:
        config.model.vit.transformer.layers = 1


STAGES = {"contrastive": _contrastive, "tokenizer": _tokenizer, "decoder": _decoder}

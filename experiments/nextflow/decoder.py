"""NextFlow's decoder in the stages of the paper's Table 2 (recipe section 5), each from the one before.

    align_256      connector and the head's new rows alone, on top of Qwen2.5-VL-7B's language tower; 10M pairs
    pretrain_256   everything from here on: 3.4T tokens with pictures of 256 x 256
    pretrain_512   1.8T; from here on scales are reweighted with alpha 0.9, and there are edits
    pretrain_1024  0.2T; a tenth of text to image is turned into captioning
    continue_1024  0.2T at half the learning rate
    sft_1024       0.02T, loss on responses alone

Of the paper: tokens, learning rates, mixtures (documents of Table 2, in proportion), alpha, self-correction of 60% of
all codes, pictures a document (5 at 512, 3 at 1024), the tower's shape, 16,384 codes of 32 + 8 numbers. Ours, because
the paper does not say: rows (their lengths hold the most pictures a document may have) and rows a step, warm-up,
AdamW's betas and decay, top 10 for self-correction, the halving of "interleaved" into interleaved and frames, the
mixtures of the last two stages (those of pretrain_1024), and inversion from pretrain_1024 on ("late in pretraining";
`pipeline.task_inversion_from=N` begins it within a stage).
The model has room for 19 scale indices in every stage, so that no array changes its shape between them.

Commands, for this file F, a tokenizer T (`experiments/nextflow/tokenizer.py`, any level: its parameters are the same
for all), Qwen2.5-VL's folder Q, pictures P and a folder R. Shards, once a level L of 256, 512, 1024:

    python -m nextflow_jax.extract --config F:pretrain_L --tokenizer T --out R/shards_L \\
        --config.pictures.root=P --config.extraction.text.path=Q

and the stages in the order above, S after B (align_256 in place of B's line: --config.init_from.weights=Q):

    python -m nextflow_jax.train --config F:S --workdir R/S --config.pipeline.shards=R/shards_L \\
        --config.init_from.workdir=R/B

Pictures in a folder give text to image and captioning, one square size a level; the mixtures name tasks that other
shards must bring (`pipeline.mixture.weights` says which are read).

Adding `,toy` makes the whole chain in minutes on a CPU: OpenMoji with grids up to 4x4, 6x6 and 8x8 as the levels, a
tokenizer of `tokenizer.py:joint,small`, a decoder of 4 layers that starts from nothing, for want of a published
language tower. Its text tokenizer is trained with the first shards; later extractions take it over with
`--config.extraction.text.path=R/shards_256/tokenizer`. Adding `,smoke` makes that tiny (`tokenizer.py:vqgan,smoke`).

Cost: published size: about 6 x 7.85e9 x 5.6e12 = 2.6e23 FLOPs in weights alone; at 50% of 459 TFLOP/s some 320,000
chip-hours of v5p. Toy: sized for a minute a stage on two CPU cores.

Result: not run at full size; its arrays are laid out over simulated devices, its steps compiled for pods of TPUs
(`experiments/nextflow/compiled/README.md`: they fit), and the chain is trained tiny in the tests.
"""

from typing import NamedTuple

import ml_collections

from nextflow_jax.config import read_variant, to_config_dict
from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.models.presets import decoder_preset
from nextflow_jax.scales import BASE_LADDER, LEVEL_SCALES, level_family
from nextflow_jax.training.alignment import alignment_freeze
from nextflow_jax.training.experiment import DecoderExperiment
from nextflow_jax.vocabulary import Vocabulary

VARIANTS = ("align_256", "pretrain_256", "pretrain_512", "pretrain_1024", "continue_1024", "sft_1024")
"""What the tests build and lay out."""

TOKENIZERS = dict.fromkeys(VARIANTS, "experiments/nextflow/tokenizer.py:decoder")

Mixture = tuple[tuple[str, float], ...]

PAIRS: Mixture = (("text_to_image", 5.0), ("image_to_text", 5.0))
AT_256: Mixture = (
    ("text", 662.0),
    ("text_to_image", 1891.0),
    ("image_to_text", 520.0),
    ("interleaved", 73.5),
    ("frames", 73.5),
)
AT_512: Mixture = (("text", 700.0), ("text_to_image", 345.0), ("edit", 20.0), ("interleaved", 2.5), ("frames", 2.5))
AT_1024: Mixture = (("text", 47.0), ("text_to_image", 10.0), ("edit", 2.0), ("interleaved", 0.25), ("frames", 0.25))
"""Millions of documents."""

PAIR_POSITIONS = 960
"""Of an alignment pair on average: 900 codes, specials, and a caption of about fifty tokens."""


class Stage(NamedTuple):
    """What differs between stages."""

    level: int
    learning_rate: float
    toy_rate: float
    tokens: float
    """Positions to train on."""
    warmup_steps: int
    mixture: Mixture
    before: str = ""
    """The stage whose checkpoint it starts from."""
    task_inversion: float = 0.0
    schedule: str = "constant"


STAGES = {
    "align_256": Stage(256, 1e-3, 4e-3, 10e6 * PAIR_POSITIONS, 50, PAIRS),
    "pretrain_256": Stage(256, 1e-4, 2e-3, 3.4e12, 2000, AT_256, "align_256"),
    "pretrain_512": Stage(512, 1e-4, 2e-3, 1.8e12, 1000, AT_512, "pretrain_256"),
    "pretrain_1024": Stage(1024, 1e-4, 2e-3, 0.2e12, 500, AT_1024, "pretrain_512", task_inversion=0.1),
    "continue_1024": Stage(1024, 5e-5, 1e-3, 0.2e12, 500, AT_1024, "pretrain_1024", 0.1, "cosine"),
    "sft_1024": Stage(1024, 1e-5, 2e-4, 0.02e12, 100, AT_1024, "continue_1024", schedule="cosine"),
}


class Level(NamedTuple):
    """What goes with a resolution; rows hold the documents with the most pictures."""

    row_length: int
    rows: int
    """Rows of the global batch: about 8M to 10M positions a step."""
    max_images: int
    scale_reweight: float
    context: int
    """Devices that share a row."""
    toy_scales: int
    toy_row_length: int


LEVELS = {
    256: Level(16_384, 512, 5, 0.0, 1, 4, 256),
    512: Level(20_480, 512, 5, 0.9, 1, 5, 384),
    1024: Level(32_768, 256, 3, 0.9, 2, 6, 512),
}

FOLDER = "runs/nextflow"
QWEN_ROWS = 152_064
"""Rows of Qwen2.5-VL's token table and head."""
CODES, CODE_DIM = 16_384, 32 + 8
MAX_SCALES = LEVEL_SCALES[1024] + 1
"""The scales of the 1024 level, and a context block's."""

TOY_LADDER = (1, 2, 3, 4, 6, 8)
TOY_STRIDE = 8
TOY_TEXT, TOY_CODES, TOY_CODE_DIM = 512, 512, 8 + 8
TOY_STEPS = 200
TINY_TEXT, TINY_CODES, TINY_CODE_DIM = 300, 64, 8


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """`variant`: a stage (sft_1024 is the default), and optionally `,toy` or `,smoke`."""
    name, switches = read_variant(variant, list(STAGES), ("toy", "smoke"))
    stage, level, smoke = STAGES[name], LEVELS[STAGES[name].level], "smoke" in switches
    toy = smoke or "toy" in switches
    model = _toy_model(smoke) if toy else _model()
    config = to_config_dict(DecoderExperiment(model=model))
    config.name = f"nextflow decoder {name}"
    _read(config, stage, level)
    _train(config, stage, level)
    if name == "align_256":
        config.optimizer.update(alignment_freeze(model)._asdict())
        config.init_from.weights = "" if toy else "weights/Qwen2.5-VL-7B-Instruct"
    else:
        config.init_from.workdir = f"{FOLDER}/{stage.before}"
    config.pipeline.response_only = name == "sft_1024"
    if toy:
        _make_toy(config, stage, level)
    if smoke:
        _make_tiny(config)
    return config


def _model() -> DecoderConfig:
    return decoder_preset("qwen2_5_vl_7b", Vocabulary(QWEN_ROWS, CODES), CODE_DIM, MAX_SCALES)


def _read(config: ml_collections.ConfigDict, stage: Stage, level: Level) -> None:
    """What is extracted and how it is read."""
    config.pictures.update(name="folder", root="data/pictures", size=(stage.level, stage.level))
    config.extraction.update(
        tasks=tuple(task for task, _ in stage.mixture),
        draws=1,
        samples_share=1.0,
        max_images=level.max_images,
        ladder=BASE_LADDER[: LEVEL_SCALES[stage.level]],
        sizes=level_family(stage.level).sizes,
    )
    config.extraction.self_correction.update(share=0.6, top_k=10)
    config.pipeline.update(
        shards=f"{FOLDER}/shards_{stage.level}",
        row_length=level.row_length,
        drop_too_long=True,
        condition_dropout=0.1,
        task_inversion=stage.task_inversion,
        reader_threads=8,
        prefetch_batches=8,
    )
    config.pipeline.sequence.scale_reweight = level.scale_reweight
    config.pipeline.mixture.weights = stage.mixture


def _train(config: ml_collections.ConfigDict, stage: Stage, level: Level) -> None:
    steps = round(stage.tokens / (level.rows * level.row_length))
    config.train.update(steps=steps, batch_size=level.rows, log_every=20, checkpoint_every=1000, max_bad_steps=10)
    config.mesh.update(data=1, fsdp=-1, context=level.context)
    config.optimizer.update(
        learning_rate=stage.learning_rate,
        schedule=stage.schedule,
        final_share=0.1 if stage.schedule == "cosine" else 0.0,
        warmup_steps=stage.warmup_steps,
        weight_decay=0.05,
    )


def _toy_model(smoke: bool) -> DecoderConfig:
    max_scales = len(TOY_LADDER) + 1
    if not smoke:
        return decoder_preset("small", Vocabulary(TOY_TEXT, TOY_CODES), TOY_CODE_DIM, max_scales, rope_base=100.0)
    tiny = {"layers": 1, "width": 64, "heads": 2, "kv_heads": 2, "mlp_width": 128, "remat": "none"}
    return decoder_preset("small", Vocabulary(TINY_TEXT, TINY_CODES), TINY_CODE_DIM, max_scales, **tiny)


def _make_toy(config: ml_collections.ConfigDict, stage: Stage, level: Level) -> None:
    """The same stages on OpenMoji: levels of 32, 48 and 64 pixels."""
    config.name = f"{config.name}, toy"
    ladder = TOY_LADDER[: level.toy_scales]
    size = (TOY_STRIDE * ladder[-1], TOY_STRIDE * ladder[-1])
    config.pictures.update(name="openmoji", root="data/openmoji", size=size)
    config.extraction.update(ladder=ladder, sizes=(size,))
    config.extraction.self_correction.temperature = 0.1
    config.extraction.text.vocab_size = config.model.vocabulary.text_size
    config.pipeline.update(row_length=level.toy_row_length, reader_threads=2, prefetch_batches=4)
    config.mesh.update(data=-1, fsdp=1, context=1)
    config.train.update(steps=TOY_STEPS, batch_size=4, log_every=10, checkpoint_every=100)
    config.optimizer.update(learning_rate=stage.toy_rate, warmup_steps=20)


def _make_tiny(config: ml_collections.ConfigDict) -> None:
    """Everything that makes a run long or large, as small as it works."""
    config.pictures.subset = "tiny"
    config.train.update(steps=20, log_every=5, checkpoint_every=10)
    config.optimizer.warmup_steps = 5
    config.pipeline.window_batches = 2
    config.evaluation.update(prompts=4, edits=4, heldout=3, shown=2, max_text_tokens=8)

"""NextFlow's vision tokenizer in its three stages (recipe section 2), and the single-codebook VQGAN to compare with.

    pixel     (a) pixel encoder, pixel codebook and pixel decoder alone
    joint     (b) everything together: the semantic encoder starts as the teacher's, the rest as stage (a) left it
    decoder   (c) a pixel decoder of twice the width and twice the blocks, trained alone; all else, the codebook
              included, stays
    vqgan     the baseline: stage (a), as long as (a) and (b) together

What each stage takes from the one before is its `init_from`, what stays as it is `optimizer.freeze` and
`freeze_codebook`. At the published size (the default): SigLIP 2's so400m, 16384 codes of 32 + 8 numbers, all 41 ratios
in buckets, LPIPS and a PatchGAN; on any folder of pictures. Learning rates, lengths and the weights of the judges are
ours: the paper does not give them.

Commands, for this file F, a folder of pictures P, and a folder R of your choice:

    python -m nextflow_jax.convert --model siglip2 --weights SIGLIP --out R/teacher
    python -m nextflow_jax.train --config F:pixel --workdir R/pixel --config.pictures.root=P JUDGES
    python -m nextflow_jax.train --config F:joint --workdir R/joint --config.pictures.root=P JUDGES \\
        --config.init_from.workdir=R/pixel --config.teacher=R/teacher
    python -m nextflow_jax.train --config F:decoder --workdir R/decoder --config.pictures.root=P JUDGES \\
        --config.init_from.workdir=R/joint
    python -m nextflow_jax.evaluate --config F:decoder --workdir R/decoder --config.pictures.root=P --out R

with SIGLIP what `python -m nextflow_jax.convert --model siglip2 --weights DIR --out SIGLIP` makes of
`google/siglip2-so400m-patch16-naflex`, and JUDGES `--config.lpips_vgg=FILE --config.lpips_linear=FILE`
(`--config.loss.lpips=0.0` does without).

Adding `,small` makes the same stages in minutes on a CPU, without published weights: 64-pixel pictures of OpenMoji, or,
with `,photographs`, crops of the photographs that scikit-image and scikit-learn bring along; `F:teacher,small` trains
the dual encoder that then is the teacher. Adding `,smoke` makes that tiny.

Cost: published size: not run. Small: sized for 50 s each for pixel and joint, 100 s for vqgan, on two CPU cores.

Result: not run yet at the published size. The small stages are compared in experiments/ablations/tokenizer.py.
"""

import ml_collections

from nextflow_jax.config import read_variant, to_config_dict
from nextflow_jax.errors import UserError
from nextflow_jax.training.experiment import ContrastiveExperiment, TokenizerExperiment
from nextflow_jax.training.settings import Experiment
from nextflow_jax.vision.presets import nextflow_tokenizer

VARIANTS = ("pixel", "joint", "decoder", "vqgan", "teacher,small", "joint,small", "decoder,small", "vqgan,small")
"""What the tests build and lay out."""

SWITCHES = ("openmoji", "photographs", "small", "smoke")

SEMANTIC = "^params/semantic_"
"""The semantic branch: encoder, projection, expansion, decoder, head."""
BEFORE_DECODER = ("^semantic_", "^pixel_encoder/", "^pixel_projection/")
"""All parameters but the pixel decoder's, its expansion's and the discriminator's."""

LEVEL = 256
LEVEL_OF_DECODER = 512
SMALL_SIZE = (64, 64)
SMALL_STEPS = 1000


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """`variant`: pixel, joint, decoder, vqgan or teacher; optionally `,small` and a data set, and `,smoke`."""
    stage, switches = read_variant(variant, list(STAGES), SWITCHES)
    small = bool(switches & {"small", "smoke", "openmoji", "photographs"})
    if stage == "teacher" and not small:
        raise UserError("--config ...:teacher: at the published size the teacher is SigLIP 2; add ,small for a toy one")
    experiment = ContrastiveExperiment() if stage == "teacher" else _published(stage)
    config = to_config_dict(experiment)
    config.name = f"nextflow tokenizer {stage}"
    if small:
        _make_small(config, stage, "photographs" if "photographs" in switches else "openmoji")
    else:
        _train_published(config)
    STAGES[stage](config)
    if "smoke" in switches:
        _make_tiny(config)
    return config


def _published(stage: str) -> Experiment:
    level = LEVEL_OF_DECODER if stage == "decoder" else LEVEL
    dual = stage in ("joint", "decoder")
    return TokenizerExperiment(model=nextflow_tokenizer(level, enlarged_decoder=stage == "decoder", semantic=dual))


def _train_published(config: ml_collections.ConfigDict) -> None:
    side = max(size[0] for size in config.model.family.sizes if size[0] == size[1])
    config.pictures.update(name="folder", root="data/pictures", size=(side, side))
    config.buckets = True
    config.mirror_share = 0.5
    config.mesh.update(data=1, fsdp=-1)
    config.train.update(steps=200_000, batch_size=256, log_every=100, checkpoint_every=2000)
    config.optimizer.update(learning_rate=1e-4, beta1=0.5, beta2=0.9, weight_decay=1e-4, warmup_steps=2000)
    config.optimizer.update(ema_decay=0.9999, clip_groups=("^discriminator/",))
    config.loss.update(l2=1.0, lpips=1.0, commitment=1.0)
    config.update(lpips_vgg="weights/vgg16-397923af.pth", lpips_linear="weights/lpips_vgg.pth")
    config.adversarial.update(weight=0.5, start_step=20_000, discriminator_start=18_000)
    config.train.max_bad_steps = 10


def _teacher(config: ml_collections.ConfigDict) -> None:
    """The dual encoder of the small form."""
    config.train.steps = 300


def _pixel(config: ml_collections.ConfigDict) -> None:
    """Stage (a): without semantic halves and teacher."""
    _without_teacher(config)
    config.train.steps //= 2


def _vqgan(config: ml_collections.ConfigDict) -> None:
    """The baseline: as (a), with the steps of both."""
    _without_teacher(config)


def _joint(config: ml_collections.ConfigDict) -> None:
    """Stage (b): the semantic half of each code starts at zero and follows the vectors that its pixel half attracts."""
    config.train.steps //= 2
    config.teacher = "runs/nextflow/teacher"
    config.init_from_teacher = True
    config.init_from.update(
        workdir="runs/nextflow/pixel",
        fresh=(SEMANTIC,),
        pixel_half=("^codebook/quantizer/(embedding|cluster_sum)$",),
    )


def _decoder(config: ml_collections.ConfigDict) -> None:
    """Stage (c): a new pixel decoder, all before it held still; distillation and commitment would reach nothing."""
    _without_distillation(config)
    config.train.steps //= 2
    config.loss.commitment = 0.0
    config.freeze_codebook = True
    config.optimizer.freeze = BEFORE_DECODER
    config.init_from.update(workdir="runs/nextflow/joint", fresh=("^params/pixel_decoder/",))


def _without_teacher(config: ml_collections.ConfigDict) -> None:
    config.model.quantizer.semantic_dim = 0
    _without_distillation(config)


def _without_distillation(config: ml_collections.ConfigDict) -> None:
    config.loss.update(distillation_cosine=0.0, distillation_l2=0.0)


def _make_small(config: ml_collections.ConfigDict, stage: str, data: str) -> None:
    """The model and the run of the quickstart's tokenizer, on pictures of 64 pixels and thus half as wide."""
    config.name = f"{config.name}, small, {data}"
    config.pictures.update(name=data, size=SMALL_SIZE, subset="all")
    config.train.update(steps=SMALL_STEPS, batch_size=16, log_every=50, checkpoint_every=250)
    config.optimizer.update(learning_rate=5e-3, warmup_steps=50, weight_decay=0.0)
    if stage == "teacher":
        config.train.batch_size = 32
        config.optimizer.learning_rate = 2e-3
        config.model.vit.position_grid = (8, 8)
        return
    small = to_config_dict(TokenizerExperiment().model)
    small.family.update(ladder=(1, 2, 3, 4, 6, 8), stride=8, sizes=(SMALL_SIZE,))
    small.vit.position_grid = (8, 8)
    # Convolutions on fine grids are slow on a CPU: the stem cuts patches of the whole stride.
    small.pixel.update(stem=8, multipliers=(1,), encoder_base=64, decoder_base=64, latent=64)
    small.quantizer.update(codes=512, semantic_dim=8, pixel_dim=8, scale_drop=0.1)
    if stage == "decoder":
        small.pixel.update(decoder_base=128, decoder_blocks=2)
    config.model = small


def _make_tiny(config: ml_collections.ConfigDict) -> None:
    """Everything that makes a run long or large, as small as it works."""
    config.pictures.subset = "tiny"
    config.train.update(steps=20, batch_size=8, log_every=5, checkpoint_every=10)
    config.optimizer.warmup_steps = 5
    config.model.vit.transformer.layers = 1
    if config.kind == "tokenizer":
        config.model.quantizer.codes = 64
        config.model.pixel.update(encoder_base=16, decoder_base=16, latent=16)


STAGES = {"teacher": _teacher, "vqgan": _vqgan, "pixel": _pixel, "decoder": _decoder, "joint": _joint}

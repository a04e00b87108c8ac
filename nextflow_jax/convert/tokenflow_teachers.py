"""Rows for TokenFlow's semantic encoders: CLIP ViT-B/16, ViTamin-XL and SigLIP-so400m under their projects' names."""

from nextflow_jax.convert.mapping import Row
from nextflow_jax.convert.transforms import HEADS_BIAS, HEADS_IN, HEADS_OUT, each, patch_convolution, split, squeeze
from nextflow_jax.convert.vqgan import Rows, convolution, linear, norm
from nextflow_jax.vision.peers.teacher import TeacherConfig

THEIRS = "encoder_vqkd"
OURS = "semantic_encoder"
BLOCKS = f"{OURS}/tower/blocks"
QKV = ("query", "key", "value")

UNSQUEEZE = each("unsqueeze", lambda array, _: array[None], lambda array: array[0])


def teacher_rows(config: TeacherConfig) -> Rows:
    """The table of a semantic encoder: ViTamin's when it has a convolutional stem, CLIP's when it has a class token,
    otherwise SigLIP's."""
    if config.stem.channels:
        return _scaling_rows() + _vitamin_rows()
    return _clip_rows(config.patch) if config.tower.class_token else _scaling_rows() + _siglip_rows(config.patch)


def _scaling_rows() -> Rows:
    """The buffers by which pictures are normalised."""
    return (
        Row("scaling_layer.shift", f"{OURS}/mean", squeeze(0, 2, 3)),
        Row("scaling_layer.scale", f"{OURS}/spread", squeeze(0, 2, 3)),
    )


def _clip_rows(patch: int) -> Rows:
    """OpenAI's CLIP: attention with fused projections."""
    block, tower = f"{THEIRS}.transformer.resblocks.{{layer}}", f"{OURS}/tower"
    return (
        Row(f"{THEIRS}.conv1.weight", f"{OURS}/patch_embedding/kernel", patch_convolution(patch)),
        Row(f"{THEIRS}.class_embedding", f"{tower}/class_token", UNSQUEEZE),
        Row(f"{THEIRS}.positional_embedding", f"{tower}/positions"),
        *norm(f"{THEIRS}.ln_pre", f"{tower}/norm_before"),
        *norm(f"{block}.ln_1", f"{BLOCKS}/attention_norm"),
        *_fused(f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias"),
        *_out(f"{block}.attn.out_proj"),
        *norm(f"{block}.ln_2", f"{BLOCKS}/mlp_norm"),
        *linear(f"{block}.mlp.c_fc", f"{BLOCKS}/up"),
        *linear(f"{block}.mlp.c_proj", f"{BLOCKS}/down"),
        *norm(f"{THEIRS}.ln_post", f"{tower}/norm_after"),
    )


def _vitamin_rows() -> Rows:
    """timm's ViTamin: convolutional stem, blocks with gated MLPs."""
    backbone, stem, block = f"{THEIRS}.patch_embed.backbone", f"{OURS}/stem", f"{THEIRS}.blocks.{{layer}}"
    conv, ours = f"{backbone}.stages.{{stage}}.{{block}}", f"{stem}/stage_{{stage}}_block_{{block}}"
    return (
        *convolution(f"{backbone}.stem.conv1", f"{stem}/stem_0"),
        *norm(f"{backbone}.stem.norm1", f"{stem}/stem_norm"),
        *convolution(f"{backbone}.stem.conv2", f"{stem}/stem_1"),
        *convolution(f"{conv}.shortcut.expand", f"{ours}/skip"),
        *norm(f"{conv}.pre_norm", f"{ours}/norm"),
        *convolution(f"{conv}.conv1_1x1", f"{ours}/widen"),
        *convolution(f"{conv}.conv2_kxk", f"{ours}/depthwise"),
        *convolution(f"{conv}.conv3_1x1", f"{ours}/narrow"),
        *norm(f"{backbone}.pool.norm", f"{stem}/out_norm"),
        *convolution(f"{backbone}.pool.proj", f"{stem}/out"),
        *norm(f"{block}.norm1", f"{BLOCKS}/attention_norm"),
        *_fused(f"{block}.attn.qkv.weight", f"{block}.attn.qkv.bias"),
        *_out(f"{block}.attn.proj"),
        *norm(f"{block}.norm2", f"{BLOCKS}/mlp_norm"),
        *norm(f"{block}.mlp.norm", f"{BLOCKS}/gate_norm"),
        *linear(f"{block}.mlp.w0", f"{BLOCKS}/up"),
        *linear(f"{block}.mlp.w1", f"{BLOCKS}/gate"),
        *linear(f"{block}.mlp.w2", f"{BLOCKS}/down"),
    )


def _siglip_rows(patch: int) -> Rows:
    """transformers' SigLIP: attention with separate projections."""
    tower, embeddings = f"{THEIRS}.vision_model", f"{THEIRS}.vision_model.embeddings"
    layer = f"{tower}.encoder.layers.{{layer}}"
    rows = [
        Row(f"{embeddings}.patch_embedding.weight", f"{OURS}/patch_embedding/kernel", patch_convolution(patch)),
        Row(f"{embeddings}.patch_embedding.bias", f"{OURS}/patch_embedding/bias"),
        Row(f"{embeddings}.position_embedding.weight", f"{OURS}/tower/positions"),
        *norm(f"{layer}.layer_norm1", f"{BLOCKS}/attention_norm"),
        *_out(f"{layer}.self_attn.out_proj"),
        *norm(f"{layer}.layer_norm2", f"{BLOCKS}/mlp_norm"),
        *linear(f"{layer}.mlp.fc1", f"{BLOCKS}/up"),
        *linear(f"{layer}.mlp.fc2", f"{BLOCKS}/down"),
    ]
    for letter, name in zip("qkv", QKV):
        rows += [Row(f"{layer}.self_attn.{letter}_proj.weight", f"{BLOCKS}/{name}/kernel", HEADS_IN)]
        rows += [Row(f"{layer}.self_attn.{letter}_proj.bias", f"{BLOCKS}/{name}/bias", HEADS_BIAS)]
    return tuple(rows)


def _fused(weight: str, bias: str) -> Rows:
    """Projections to queries, keys and values in one matrix."""
    kernels, biases = (tuple(f"{BLOCKS}/{name}/{part}" for name in QKV) for part in ("kernel", "bias"))
    return Row(weight, kernels, split(3).then(HEADS_IN)), Row(bias, biases, split(3).then(HEADS_BIAS))


def _out(theirs: str) -> Rows:
    return Row(f"{theirs}.weight", f"{BLOCKS}/out/kernel", HEADS_OUT), Row(f"{theirs}.bias", f"{BLOCKS}/out/bias")

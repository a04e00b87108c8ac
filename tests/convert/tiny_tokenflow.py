"""The architectures of the tiny TokenFlow models that tests/goldens/make_peers.py makes."""

import dataclasses

from nextflow_jax.vision.cnn import PixelConfig
from nextflow_jax.vision.codebook import QuantizerConfig
from nextflow_jax.vision.peers.teacher import TeacherConfig
from nextflow_jax.vision.peers.tokenflow import TokenFlowConfig, published
from nextflow_jax.vision.peers.tower import TowerConfig
from nextflow_jax.vision.peers.vitamin import MbConvStemConfig

TOWER = TowerConfig(width=16, layers=2, heads=2, mlp_width=64)
TEACHERS = {
    "clip": TeacherConfig(
        dataclasses.replace(
            published("clipb_224").teacher.tower, width=16, layers=2, heads=2, mlp_width=64, grid=(4, 4)
        ),
        patch=4,
        patch_bias=False,
        normalised=False,
    ),
    "vitamin": TeacherConfig(
        dataclasses.replace(TOWER, mlp_width=24, gated=True), stem=MbConvStemConfig((4, 8), (2, 2))
    ),
    "siglip": TeacherConfig(dataclasses.replace(TOWER, mlp_width=20, activation="gelu_tanh", grid=(4, 4)), patch=3),
}
LADDERS = {"clip": (1, 2, 4), "vitamin": (1, 2), "siglip": (1, 2, 3, 4)}
SIZES = {"clip": 16, "vitamin": 32, "siglip": 14}


def tiny_config(name):
    """The architecture of make_peers.py's models."""
    side = LADDERS[name][-1]
    return TokenFlowConfig(
        teacher=TEACHERS[name],
        semantic_decoder=TowerConfig(
            width=12, layers=2, heads=3, mlp_width=48, key_bias=False, class_token=True, grid=(side, side),
            norm_after=True,
        ),
        pixel=PixelConfig(
            stem=1, multipliers=(1, 1, 1, 1, 2) if name == "vitamin" else (1, 1, 2), encoder_base=32, encoder_blocks=1,
            decoder_base=64 if name == "clip" else 32, decoder_blocks=3 if name == "clip" else 2, latent=12,
            groups=32, attention=True,
        ),
        quantizer=QuantizerConfig(16, semantic_dim=6, pixel_dim=4, normalise="codes", learned="gradient"),
        size=SIZES[name],
        ladder=LADDERS[name],
        teacher_width=10,
    )  # fmt: skip

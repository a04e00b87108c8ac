"""One request of each task, prompts of different lengths, pictures of both sizes, every way to guide: one batch."""

import pytest

from nextflow_jax.sampling import batches
from nextflow_jax.sampling.requests import (
    Request,
    answer,
    caption,
    edit,
    in_context,
    text_to_image,
    think_then_draw,
)
from nextflow_jax.sampling.settings import SamplingSettings
from tests import tiny_models

SQUARE, WIDE = tiny_models.FAMILY.sizes
PICTURES = tiny_models.picture(0, SQUARE), tiny_models.picture(1, WIDE)

PLAIN = SamplingSettings(temperature=1.0, top_k=0, text_temperature=1.0)
GUIDED = SamplingSettings(guidance=(3.0, 1.0, 2.0), temperature=(1.0, 0.7), top_k=0)
RAMP = SamplingSettings(guidance=2.5, guidance_schedule="linear", guidance_drops="all", temperature=1.0, top_k=0)
INTERVAL = SamplingSettings(
    guidance=2.0, guidance_schedule="cosine", guidance_scales=(2, 3), temperature=1.0, top_k=0, text_temperature=1.0
)

STRENGTHS = {PLAIN: [1, 1, 1], GUIDED: [3, 1, 2], RAMP: [1, 1.75, 2.5], INTERVAL: [1, 1.5, 2]}
"""Guidance of each of three scales, written out."""
TEMPERATURES = {PLAIN: [1, 1, 1], GUIDED: [1, 0.7, 0.7], RAMP: [1, 1, 1], INTERVAL: [1, 1, 1]}

REQUESTS = [
    text_to_image("a red sun", size=SQUARE, seed=1, settings=GUIDED),
    text_to_image("the dark side of the moon, sun and moon", size=WIDE, seed=2, settings=PLAIN),
    caption(PICTURES[0], max_text_tokens=7, seed=3, settings=PLAIN),
    edit(PICTURES[1], "make it blue", size=SQUARE, seed=4, settings=GUIDED),
    Request(("sun",), size=WIDE, begin_with_image=True, max_text_tokens=6, seed=5, settings=GUIDED),
    in_context([(PICTURES[0], PICTURES[1])], PICTURES[0], size="condition", seed=6, settings=RAMP),
    think_then_draw("moon <size 2:1>", max_thought_tokens=5, size="auto", seed=7, settings=INTERVAL),
    answer(PICTURES, "sun or moon", max_text_tokens=5, seed=8, settings=GUIDED),
]
SIZES = [SQUARE, WIDE, None, SQUARE, WIDE, SQUARE, WIDE, None]
"""Of the picture that each answer has."""
KINDS = ["i", "i", "t", "i", "it", "i", "ti", "t"]
"""Pictures and texts of each answer, in order."""


def few_shapes():
    """One padded prompt and one cache for all batches, while it lasts: compiling is what takes the time."""
    patch = pytest.MonkeyPatch()
    patch.setattr(batches, "LEAST_PROMPT", 64)
    patch.setattr(batches, "LEAST_SLOTS", 96)
    return patch

"""Guidance: neutral strengths leave the conditional logits alone, others go past them."""

import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.sampling.guidance import both_halves, combine, needs_guidance
from nextflow_jax.sampling.settings import SamplingSettings

GUIDED, UNGUIDED = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 2, 5)), jnp.float32)
BOTH = jnp.concatenate([GUIDED, UNGUIDED])


@pytest.mark.parametrize("neutral", [0.0, 1.0])
def test_neutral_strength_is_exactly_the_conditional_model(neutral):
    mixed = combine(BOTH, jnp.asarray([neutral, 3.0, neutral]), guided=True)
    assert np.array_equal(mixed[::2], GUIDED[::2])
    assert not np.allclose(mixed[1], GUIDED[1])


def test_strength_extrapolates_from_the_unguided_logits():
    strengths = jnp.asarray([0.5, 2.0, 7.5])
    expected = [u + g * (c - u) for c, u, g in zip(GUIDED, UNGUIDED, strengths)]
    assert np.allclose(combine(BOTH, strengths, guided=True), expected, atol=1e-5)


def test_one_half_passes_unchanged():
    assert combine(GUIDED, jnp.ones(3), guided=False) is GUIDED
    assert both_halves(GUIDED, guided=False) is GUIDED
    assert np.array_equal(both_halves(GUIDED, guided=True), jnp.concatenate([GUIDED, GUIDED]))


@pytest.mark.parametrize(
    ("guidance", "needed"), [(1, False), (0, False), ((0, 1.0), False), (1.5, True), ((1, 3), True)]
)
def test_the_second_half_is_computed_only_where_needed(guidance, needed):
    assert needs_guidance([SamplingSettings(), SamplingSettings(guidance=guidance)]) == needed

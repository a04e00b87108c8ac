"""Settings: numbers or one a scale, and every broken rule reported."""

import dataclasses

import numpy as np
import pytest

from nextflow_jax.config import from_config_dict, preflight, to_config_dict, to_plain_dict
from nextflow_jax.errors import UserError
from nextflow_jax.sampling.settings import SamplingSettings, per_scale


@pytest.mark.parametrize(
    ("value", "expected"), [(0.5, [0.5] * 4), ((1.0, 0.5), [1, 0.5, 0.5, 0.5]), ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4])]
)
def test_a_short_list_goes_on_with_its_last_entry(value, expected):
    assert np.array_equal(per_scale(value, 4), np.asarray(expected, np.float32))


def test_settings_survive_json_and_configdict():
    settings = SamplingSettings(temperature=(1.0, 0.5), top_k=[9, 3], guidance=4, guidance_scales=(2, 5))
    assert from_config_dict(SamplingSettings, to_plain_dict(settings)) == settings
    assert from_config_dict(SamplingSettings, to_config_dict(settings)) == settings
    assert hash(settings) == hash(dataclasses.replace(settings, top_k=(9, 3)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", (1.0, float("inf"))),
        ("guidance", float("nan")),
        ("top_k", (5, 2.5)),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", (0.5, 1.1)),
        ("top_p", ()),
        ("text_temperature", -0.1),
        ("text_top_k", -2),
        ("text_top_p", 2.0),
        ("guidance_schedule", "quadratic"),
        ("guidance_drops", "pictures"),
        ("guidance_scales", (0, 2)),
        ("guidance_scales", (3, 2)),
        ("guidance_scales", (1,)),
    ],
)
def test_broken_settings_are_named(field, value):
    preflight(SamplingSettings(), "settings")
    with pytest.raises(UserError, match=f"settings.{field} = "):
        preflight(SamplingSettings(**{field: value}), "settings")


def test_schedules_are_resolved_to_a_number_a_scale():
    def of(num_scales=5, **options):
        return SamplingSettings(**options).guidance_of_scales(num_scales).tolist()

    assert of(guidance=(3.0, 1.0)) == [3, 1, 1, 1, 1]
    assert of(guidance=3.0) == [3] * 5
    assert of(guidance=3.0, guidance_schedule="linear") == [1, 1.5, 2, 2.5, 3]
    cosine = of(guidance=3.0, guidance_schedule="cosine")
    assert np.allclose(cosine, [1, 1.29289, 2, 2.70711, 3], atol=1e-5)
    assert of(guidance=3.0, guidance_scales=(2, 4)) == [1, 3, 3, 3, 1]
    assert of(guidance=3.0, guidance_scales=(2, 3), guidance_schedule="linear") == [1, 1.5, 2, 1, 1]
    assert of(guidance=0, guidance_schedule="cosine") == [0] * 5, "off stays off"
    assert of(1, guidance=3.0, guidance_schedule="linear") == [3]


def test_a_ramp_ends_at_one_number():
    with pytest.raises(UserError, match="settings.guidance = .1.0, 2.0.: a linear schedule ends at one number"):
        preflight(SamplingSettings(guidance=(1.0, 2.0), guidance_schedule="linear"), "settings")

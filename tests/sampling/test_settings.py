"""Settings: numbers or one a scale, and every broken rule reported."""

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
    settings = SamplingSettings(temperature=(1.0, 0.5), top_k=[9, 3], guidance=4)
    assert from_config_dict(SamplingSettings, to_plain_dict(settings)) == settings
    assert from_config_dict(SamplingSettings, to_config_dict(settings)) == settings
    assert hash(settings) == hash(SamplingSettings(temperature=(1.0, 0.5), top_k=(9, 3), guidance=4))


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
    ],
)
def test_broken_settings_are_named(field, value):
    preflight(SamplingSettings(), "settings")
    with pytest.raises(UserError, match=f"settings.{field} = "):
        preflight(SamplingSettings(**{field: value}), "settings")

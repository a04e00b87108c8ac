"""TokenFlow's published configurations (values and names: tests/convert/test_tokenflow.py)."""

import pytest

from nextflow_jax.config import from_config_dict, preflight, to_plain_dict
from nextflow_jax.errors import UserError
from nextflow_jax.vision.peers.tokenflow import TEACHERS, TokenFlowConfig, published


@pytest.mark.parametrize("teacher, tokens, side", [("clipb_224", 561, 224), ("vitamin_xlarge_256", 817, 256)])
def test_pixel_branch_sees_the_picture_as_it_is(teacher, tokens, side):
    config = published(teacher)
    assert (config.schedule.num_tokens, config.size, config.pixel_size) == (tokens, side, side)


def test_siglip_has_its_own_grid_and_a_resized_pixel_branch():
    config = published("siglip_384", enhanced=True)
    assert (config.schedule.num_tokens, config.size, config.pixel_size) == (2227, 384, 432)
    assert (config.pixel.decoder_base, config.pixel.decoder_blocks) == (256, 5)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_configurations_are_sound_and_survive_json(teacher):
    config = published(teacher)
    preflight(config)
    assert from_config_dict(TokenFlowConfig, to_plain_dict(config)) == config


def test_unknown_teachers_are_named():
    with pytest.raises(UserError, match="teacher 'siglip_383' is not known; did you mean siglip_384"):
        published("siglip_383")

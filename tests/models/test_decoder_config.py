import re

import pytest

from nextflow_jax.config import from_config_dict, to_config_dict, to_plain_dict
from nextflow_jax.models.decoder import DecoderConfig
from nextflow_jax.models.presets import decoder_preset
from nextflow_jax.vocabulary import Vocabulary


def test_a_configuration_survives_the_door_and_json():
    config = decoder_preset("small", Vocabulary(100, 50), 16, 5)
    assert from_config_dict(DecoderConfig, to_config_dict(config)) == config
    assert from_config_dict(DecoderConfig, to_plain_dict(config)) == config


BROKEN = {
    "kv_heads": (3, r"must divide heads = 4; use one of \[1, 2, 4\]"),
    "rope_sections": ((2, 3, 4), r"must be three counts that sum to head_size / 2 = 8"),
    "layers": (0, "must be positive"),
    "initializer_range": (-0.1, "must not be negative"),
    "remat": ("ful", "did you mean full"),
    "dtype": ("bf16", "must be one of float32, bfloat16"),
    "connector": ("conv", "must be one of linear, mlp"),
    "head": ("seperate", "did you mean separate"),
    "code_halves": ("pixels", "did you mean pixel"),
    "attention": ("chunk", "did you mean chunked"),
}


@pytest.mark.parametrize("field", BROKEN)
def test_broken_rules_are_named(field):
    value, message = BROKEN[field]
    faults = list(decoder_preset("tiny", Vocabulary(100, 50), 16, 5, **{field: value}).faults())
    assert [fault.field for fault in faults] == [field]
    assert re.search(message, str(faults[0]))


@pytest.mark.parametrize("semantic_dim", [0, 16])
def test_one_half_of_codes_needs_codes_of_two(semantic_dim):
    config = decoder_preset("tiny", Vocabulary(100, 50), 16, 5, code_halves="pixel", semantic_dim=semantic_dim)
    faults = list(config.faults())
    assert [fault.field for fault in faults] == ["semantic_dim"]
    assert "use code_halves 'both' with a single codebook" in str(faults[0])

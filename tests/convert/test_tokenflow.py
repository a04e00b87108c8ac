"""TokenFlow's checkpoints: every published name lands, once each, and parts compute what plain torch layers compute."""

import functools
import json

import jax
import numpy as np
import pytest

from nextflow_jax.convert.tokenflow import (
    check_tokenflow,
    load_folder,
    load_tokenflow,
    read_tokenflow,
    save_folder,
    save_tokenflow,
    tokenflow_config,
)
from nextflow_jax.convert.weight_files import read_arrays, write_arrays
from nextflow_jax.errors import UserError
from nextflow_jax.vision.peers.tokenflow import TokenFlow, published
from tests.convert.tiny_tokenflow import TEACHERS, tiny_config
from tests.goldens.peer_files import fake_arrays, published_shapes, tiny

PARTS = ("teacher", "features", "codes", "total", "picture", "semantic")
CASES = [*((name, part) for name in ("clip", "siglip") for part in PARTS), ("vitamin", "teacher")]
"""What follows ViTamin's features is the others' too."""


@functools.cache
def loaded(name):
    """(configuration, variables) of a tiny model."""
    config = tiny_config(name)
    return config, read_tokenflow(tiny(name)[0], config, f"tiny {name}")


@functools.cache
def computed(name):
    """Every result that the golden file has, by our modules; later parts start from the golden's earlier ones."""
    (config, variables), (_, pictures, results) = loaded(name), tiny(name)

    def everything(module, pictures, codes, total):
        if config.teacher.stem.channels:
            return {"teacher": module.semantic_encoder(pictures)}
        features = module.encode_features(pictures)
        return {
            "teacher": module.semantic_encoder(pictures),
            "features": features,
            "codes": module.quantizer.encode(features, config.schedule)[0],
            "total": module.quantizer.accumulate(codes, config.schedule)[-1],
            "picture": module.decode_features(total),
            "semantic": module.decode_semantic(total),
        }

    run = jax.jit(lambda variables, *inputs: TokenFlow(config).apply(variables, *inputs, method=everything))
    return run(variables, pictures, results["codes"].astype(np.int32), results["total"])


@pytest.mark.parametrize("name, part", CASES)
def test_equals_plain_torch_layers(name, part):
    expected = tiny(name)[2][part]
    np.testing.assert_allclose(np.reshape(computed(name)[part], expected.shape), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["clipb_224", "vitamin_xlarge_256 enhanced", "siglip_384"])
def test_the_published_names_and_shapes_are_all_used_once(name):
    arrays = fake_arrays(published_shapes(name))
    config = tokenflow_config(arrays)
    teacher, _, enhanced = name.partition(" ")
    assert config == published(teacher, bool(enhanced))
    check_tokenflow(arrays, config, name)


@pytest.mark.parametrize("name", TEACHERS)
def test_writing_back_is_exact(name, tmp_path):
    config, variables = loaded(name)
    weights = tiny(name)[0]
    save_tokenflow(tmp_path / "back.safetensors", variables, config)
    written = read_arrays(tmp_path / "back.safetensors")
    tower = "encoder_vqkd.vision_model"
    for unused in weights.keys() - written.keys() - {"quantize.codebook_used"}:
        assert unused.startswith((f"{tower}.encoder.layers.2.", f"{tower}.post_layernorm.", f"{tower}.head."))
    for array_name, array in written.items():
        assert array.tobytes() == weights[array_name].tobytes(), array_name


def test_a_folder_of_ours_keeps_everything(tmp_path):
    config, variables = loaded("siglip")
    save_folder(tmp_path / "folder", config, variables)
    found_config, found = load_folder(tmp_path / "folder")
    assert found_config == config
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_folders_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_folder(tmp_path)
    save_folder(tmp_path, *loaded("vitamin"))
    description = json.loads((tmp_path / "tokenflow.json").read_text())
    (tmp_path / "tokenflow.json").write_text(json.dumps({**description, "ladder": [1, 3]}))
    with pytest.raises(UserError, match="must be size // teacher.patch = 2"):
        load_folder(tmp_path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no TokenFlow checkpoint .*known teachers are clipb_224"):
        tokenflow_config(tiny("var")[0])
    write_arrays(tmp_path / "tiny.safetensors", tiny("siglip")[0])
    with pytest.raises(UserError, match="does not fit .*missing .*encoder.layers.3.*mis-shaped"):
        load_tokenflow(tmp_path / "tiny.safetensors")

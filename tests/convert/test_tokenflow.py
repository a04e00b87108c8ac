"""TokenFlow's checkpoints: every published name lands, once each, and parts compute what plain torch layers compute."""

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
from tests.convert.tiny_tokenflow import SIZES, TEACHERS, tiny_config
from tests.goldens.peer_files import fake_arrays, published_shapes, tiny

PARTS = ("teacher", "features", "codes", "total", "picture", "semantic")


@pytest.fixture(scope="module", params=sorted(TEACHERS))
def model(request):
    weights, pictures, results = tiny(request.param)
    config = tiny_config(request.param)
    return config, read_tokenflow(weights, config, f"tiny {request.param}"), pictures, results


@pytest.fixture(scope="module")
def computed(model):
    """Every result that the golden file has, by our modules; later parts start from the golden's earlier ones."""
    config, variables, pictures, results = model
    tokenflow = TokenFlow(config)

    def everything(module, pictures, codes, total):
        features = module.encode_features(pictures)
        return {
            "teacher": module.semantic_encoder(pictures),
            "features": features,
            "codes": module.quantizer.encode(features, config.schedule)[0],
            "total": module.quantizer.accumulate(codes, config.schedule)[-1],
            "picture": module.decode_features(total),
            "semantic": module.decode_semantic(total),
        }

    run = jax.jit(lambda variables, *inputs: tokenflow.apply(variables, *inputs, method=everything))
    return run(variables, pictures, results["codes"].astype(np.int32), results["total"])


@pytest.mark.parametrize("part", PARTS)
def test_equals_plain_torch_layers(part, model, computed):
    expected = model[3][part]
    np.testing.assert_allclose(np.reshape(computed[part], expected.shape), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["clipb_224", "vitamin_xlarge_256 enhanced", "siglip_384"])
def test_the_published_names_and_shapes_are_all_used_once(name):
    arrays = fake_arrays(published_shapes(name))
    config = tokenflow_config(arrays)
    teacher, _, enhanced = name.partition(" ")
    assert config == published(teacher, bool(enhanced))
    check_tokenflow(arrays, config, name)


def test_writing_back_is_exact(model, tmp_path):
    config, variables, *_ = model
    weights = tiny(next(name for name, size in SIZES.items() if size == config.size))[0]
    save_tokenflow(tmp_path / "back.safetensors", variables, config)
    written = read_arrays(tmp_path / "back.safetensors")
    unused = {name for name in weights if name not in written}
    assert all(name.startswith(("quantize.codebook_used", "encoder_vqkd.vision_model")) for name in unused)
    assert all(
        ".layers.2." in name or "post_layernorm" in name or ".head." in name
        for name in unused - {"quantize.codebook_used"}
    )
    for name, array in written.items():
        assert array.tobytes() == weights[name].tobytes(), name


def test_a_folder_of_ours_keeps_everything(model, tmp_path):
    config, variables, *_ = model
    save_folder(tmp_path / "folder", config, variables)
    found_config, found = load_folder(tmp_path / "folder")
    assert found_config == config
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_folders_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_folder(tmp_path)
    name = "vitamin"
    config = tiny_config(name)
    save_folder(tmp_path, config, read_tokenflow(tiny(name)[0], config, name))
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

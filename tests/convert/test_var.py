"""VAR's VQVAE: its published names all land, once each, and compute what plain torch layers compute."""

import dataclasses

import jax
import numpy as np
import pytest

from nextflow_jax.convert.var import LADDERS, check_var, load_var, read_var, save_var, var_config, write_var
from nextflow_jax.convert.weight_files import read_arrays, write_arrays
from nextflow_jax.errors import UserError
from nextflow_jax.scales import ScheduleFamily
from nextflow_jax.vision.codec import VisionTokenizerCodec
from nextflow_jax.vision.tokenizer import VisionTokenizer
from tests.goldens.peer_files import fake_arrays, published_shapes, tiny

FAMILY = ScheduleFamily((1, 2, 3, 4, 5), 2, ((10, 10),))


def tiny_config(weights):
    return dataclasses.replace(var_config(weights), family=FAMILY)


@pytest.fixture(scope="module")
def model():
    weights, pictures, results = tiny("var")
    config = tiny_config(weights)
    return config, read_var(weights, config, "tiny VAR"), pictures, results


@pytest.fixture(scope="module")
def computed(model):
    """Every result that the golden file has, by our modules."""
    config, variables, pictures, results = model
    tokenizer, schedule = VisionTokenizer(config), FAMILY.schedule((10, 10))

    @jax.jit
    def run(variables, pictures, codes, total):
        features = tokenizer.apply(variables, pictures, method="encode_features")
        chosen, _ = tokenizer.apply(variables, pictures, method="encode")
        maps = tokenizer.apply(variables, codes, schedule, method="accumulate")
        picture = tokenizer.apply(variables, total, method="decode_features")
        return {"features": features, "codes": chosen, "total": maps[-1], "picture": picture}

    return run(variables, pictures, results["codes"].astype(np.int32), results["total"])


@pytest.mark.parametrize("part", ["features", "codes", "total", "picture"])
def test_equals_plain_torch_layers(part, model, computed):
    np.testing.assert_allclose(computed[part], model[3][part], rtol=0, atol=1e-4)


def test_the_published_names_and_shapes_are_all_used_once():
    arrays = fake_arrays(published_shapes("var"))
    config = var_config(arrays)
    check_var(arrays, config, "vae_ch160v4096z32.pth")
    assert config.family.schedule((256, 256)).num_tokens == 680
    assert config.pixel.multipliers == (1, 1, 2, 2, 4) and config.pixel.encoder_base == 160
    assert (config.quantizer.codes, config.quantizer.dim, config.quantizer.refiners) == (4096, 32, 4)


def test_writing_back_is_exact(model, tmp_path):
    weights = dict(tiny("var")[0])
    save_var(tmp_path / "back.safetensors", model[1])
    written = read_arrays(tmp_path / "back.safetensors")
    del weights["quantize.ema_vocab_hit_SV"]
    assert written.keys() == weights.keys()
    for name, array in weights.items():
        assert written[name].tobytes() == array.tobytes(), name


def test_revived_codes_are_written(model):
    _, variables, *_ = model
    state = variables["codebook"]["quantizer"]
    shift = np.zeros_like(state["shift"])
    shift[3] = 1.0
    moved = write_var({**variables, "codebook": {"quantizer": {**state, "shift": shift}}})["quantize.embedding.weight"]
    np.testing.assert_array_equal(moved - tiny("var")[0]["quantize.embedding.weight"] > 0.5, shift > 0)


def test_a_codec_encodes_and_decodes(model):
    config, variables, pictures, results = model
    codec = VisionTokenizerCodec(config, variables, chunk=2)
    images = np.asarray((pictures + 1) * 127.5).round().astype(np.uint8)
    codes, _ = codec.encode(images)
    assert codes.shape == results["codes"].shape
    expected = np.clip((np.clip(results["picture"], -1, 1) + 1) * 127.5, 0, 255)
    decoded = codec.decode(results["codes"].astype(np.int32), (10, 10))
    np.testing.assert_allclose(decoded, expected, atol=0.51)


def test_loading_a_file(tmp_path):
    weights, *_ = tiny("var")
    write_arrays(tmp_path / "var.safetensors", weights)
    config, variables = load_var(tmp_path / "var.safetensors", 512)
    assert config.family.sizes == ((512, 512),) and config.family.ladder == LADDERS[512]
    np.testing.assert_array_equal(variables["params"]["quantizer"]["embedding"], weights["quantize.embedding.weight"])


def test_other_files_are_refused():
    weights = dict(tiny("var")[0])
    with pytest.raises(UserError, match="side '300' is not known"):
        var_config(weights, 300)
    del weights["decoder.up.0.block.1.conv2.bias"]
    weights["decoder.extra"] = np.zeros(3, np.float32)
    with pytest.raises(
        UserError, match=r"missing \(1\): decoder.up.0.block.1.conv2.bias.*unmapped \(1\): decoder.extra"
    ):
        read_var(weights, tiny_config(weights), "file")
    del weights["post_quant_conv.weight"]
    with pytest.raises(UserError, match="no VQVAE of VAR's .*post_quant_conv.weight"):
        var_config(weights)

"""Exported folders: a source's tensors come back bit for bit, ours too, and what cannot be written is said."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.convert.flat import flatten_variables, unflatten_variables
from nextflow_jax.convert.hf_folder import save_folder
from nextflow_jax.convert.qwen2_5 import abstract_params, open_checkpoint, stream_tower
from nextflow_jax.convert.qwen2_5_config import decoder_config, read_tower
from nextflow_jax.convert.weight_files import read_arrays
from nextflow_jax.errors import UserError
from nextflow_jax.text import load_text_tokenizer, train_sentencepiece
from nextflow_jax.training.published_start import load_published_start
from tests import qwen_folder


@pytest.fixture(scope="module", params=["vl", "text", "vl separate"])
def model(request, tmp_path_factory):
    """(its folder, configuration, random parameters but for what the folder holds)."""
    name, *separate = request.param.split()
    folder = qwen_folder.make(tmp_path_factory.mktemp(request.param) / name, name)
    config = config_of(folder, head="separate" if separate else "shared")
    return folder, config, imported(folder, config)


def config_of(folder, **changes):
    return decoder_config(read_tower(folder), 5, 3, 3, pad_multiple=8, **changes)


def imported(folder, config, seed=0):
    """The parameters as NumPy arrays: those of the folder, others random (exact in bfloat16, as the folder's are)."""
    generator = np.random.default_rng(seed)
    flat = {}
    for name, leaf in abstract_params(config).items():
        flat[name] = np.asarray(generator.standard_normal(leaf.shape), jnp.bfloat16).astype(np.float32)
    for target, index, array in stream_tower(open_checkpoint(folder), config):
        index += tuple(slice(size) for size in array.shape)
        flat[target][index] = array
    return unflatten_variables(flat)


def export(out, model, source=True, **options):
    folder, config, params = model
    opened = open_checkpoint(folder) if source else None
    return save_folder(out, config, params, load_text_tokenizer(folder), 64, opened, **options)


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_a_source_comes_back_bit_for_bit_vision_tower_and_all(model, tmp_path, shard_bytes):
    dtype = export(tmp_path / "out", model, shard_bytes=shard_bytes)
    assert dtype == ("float32" if model[0].name == "text" else "bfloat16")
    assert_same_bits(read_arrays(tmp_path / "out"), read_arrays(model[0]))
    shards = list((tmp_path / "out").glob("model-*-of-*.safetensors"))
    assert bool(shards) == (shard_bytes == 20_000) and all(file.stat().st_size < 24_000 for file in shards)
    assert json.loads((tmp_path / "out/config.json").read_text()) == json.loads((model[0] / "config.json").read_text())
    for file in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / file).read_bytes() == (model[0] / file).read_bytes()


@pytest.mark.parametrize("source", [True, False])
def test_an_export_is_read_back_bit_for_bit(model, tmp_path, source):
    export(tmp_path / "out", model, source)
    _, config, params = model
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in flatten_variables(params).items()}
    start = load_published_start(str(tmp_path / "out"), config, {"params": unflatten_variables(shapes)})
    assert len(start.given) == len(shapes)
    mesh = jax.make_mesh((1,), ("a",), devices=jax.devices()[:1])
    one = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    targets = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one) for name, leaf in shapes.items()}
    made = start.apply({"params": unflatten_variables(targets)})
    assert_same_bits(
        {name: np.asarray(array) for name, array in flatten_variables(made["params"]).items()},
        flatten_variables(params),
    )


def test_the_text_layout_needs_no_source(model, tmp_path):
    folder, config, _ = model
    export(tmp_path / "out", model, source=False)
    tower = read_tower(tmp_path / "out")
    assert tower.model_type == "qwen2" and tower.text_size == 90 and tower.rope_base == config.rope_base
    theirs = {name: array for name, array in read_arrays(folder).items() if not name.startswith("visual.")}
    assert_same_bits(read_arrays(tmp_path / "out"), theirs)
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text())["tokenizer_class"].endswith("Fast")


def test_trained_weights_keep_their_precision(model, tmp_path):
    folder, config, params = model
    trained = jax.tree.map(lambda array: array * np.float32(1.001), params)
    assert export(tmp_path / "out", (folder, config, trained)) == "float32"
    settings = json.loads((tmp_path / "out/config.json").read_text())
    assert settings["dtype"] == "float32"
    scale = read_arrays(tmp_path / "out")["model.norm.weight"]
    assert scale.tobytes() == trained["final_norm"]["scale"].tobytes()


def test_an_export_is_replaced_and_nothing_else(model, tmp_path):
    for _ in range(2):
        export(tmp_path / "out", model)
    (tmp_path / "out/nextflow.safetensors").unlink()
    with pytest.raises(UserError, match="is no export of ours"):
        export(tmp_path / "out", model)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="give another folder"):
        export(tmp_path / "file", model)


def test_a_sentencepiece_model_goes_along_as_it_is(model, tmp_path):
    folder, config, params = model
    tokenizer = train_sentencepiece(["a text"], 270)
    save_folder(tmp_path / "out", config, params, tokenizer, 64)
    assert load_text_tokenizer(tmp_path / "out").fingerprint == tokenizer.fingerprint
    assert not (tmp_path / "out/tokenizer_config.json").exists()


def test_what_is_no_qwen_is_refused(model, tmp_path):
    folder, config, params = model
    other = dataclasses.replace(config, attention_bias=False, qk_norm=True)
    with pytest.raises(UserError, match="attention_bias = False: .*qk_norm = True: .*export a bundle"):
        export(tmp_path / "out", (folder, other, params), source=False)
    with pytest.raises(UserError, match="attention_bias = False, there True"):
        export(tmp_path / "out", (folder, other, params))
    assert not (tmp_path / "out").exists()


def test_our_file_must_fit(model, tmp_path):
    export(tmp_path / "out", model)
    folder, config, _ = model
    more = decoder_config(read_tower(folder), 13, 3, 4, pad_multiple=8, head=config.head)
    with pytest.raises(UserError, match=r"codes is \(5, 3\), the configuration asks for \(13, 3\).*remove the file"):
        stream_tower(open_checkpoint(tmp_path / "out"), more)


def test_goldens_have_a_vision_tower():
    names = read_arrays(pathlib.Path(qwen_folder.GOLDENS) / "vl")
    assert any(name.startswith("visual.") for name in names)

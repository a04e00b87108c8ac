"""Published text checkpoints give transformers' logits, whole or over devices, and mistakes are named in one line.

The references are made by tests/goldens/make_qwen2_5.py.
"""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax import sharding
from nextflow_jax.convert.flat import unflatten_variables
from nextflow_jax.convert.placement import place
from nextflow_jax.convert.qwen2_5 import abstract_params, id_axes, open_checkpoint, stream_tower
from nextflow_jax.convert.qwen2_5_config import decoder_config, read_tower
from nextflow_jax.convert.weight_files import read_arrays, write_arrays
from nextflow_jax.errors import UserError
from nextflow_jax.models.decoder import Decoder, DecoderInputs
from nextflow_jax.models.presets import PRESETS
from nextflow_jax.sharding import MeshConfig

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "qwen2_5"
LOGITS = np.load(GOLDENS / "logits.npz")
TOLERANCE = 1e-4
CODES, CODE_DIM = 5, 3


def config_of(folder, **changes):
    return decoder_config(read_tower(folder), CODES, CODE_DIM, 3, pad_multiple=8, **changes)


def edit_config(folder, change):
    file = folder / "config.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def old_layout(values):
    """As transformers before 4.52 wrote it: sizes at the top, positions in two entries."""
    text = values.pop("text_config", {})
    rope = text.pop("rope_parameters", None) or values.pop("rope_parameters")
    values |= {name: value for name, value in text.items() if name != "model_type"}
    values["rope_theta"] = rope["rope_theta"]
    if "mrope_section" in rope:
        values["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}


def with_prefix(folder, prefix):
    """Rewrites the folder as one file whose tower is called `prefix`."""
    arrays = read_arrays(folder)
    for file in folder.glob("model*"):
        file.unlink()
    renamed = {
        name.replace("model.", prefix, 1) if name.startswith("model.") else name.replace("visual.", "model.visual."): a
        for name, a in arrays.items()
    }
    write_arrays(folder / "model.safetensors", renamed)


@pytest.fixture
def copy(tmp_path):
    return lambda name: pathlib.Path(shutil.copytree(GOLDENS / name, tmp_path / name))


def load(folder, mesh=None, **changes):
    """(configuration, parameters) of a folder; whatever it does not hold is zero."""
    config = config_of(folder, **changes)
    mesh = sharding.make_mesh(mesh or MeshConfig(), jax.devices()[: 8 if mesh else 1])
    boxed = jax.eval_shape(lambda: Decoder(config).init(jax.random.key(0), DecoderInputs.zeros(1, 1)))["params"]
    shardings = jax.tree_util.tree_leaves(sharding.shardings_of(boxed, mesh, sharding.make_rules()))
    abstract = abstract_params(config)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in
             jax.tree_util.tree_leaves_with_path(unflatten_variables(abstract))]  # fmt: skip
    targets = {
        name: jax.ShapeDtypeStruct(abstract[name].shape, abstract[name].dtype, sharding=placement)
        for name, placement in zip(names, shardings, strict=True)
    }
    made = place(stream_tower(open_checkpoint(folder), config), targets)
    rest = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in abstract.items() if name not in made}
    return config, unflatten_variables({**made, **rest})


def text_logits(config, params, key):
    tokens = jnp.asarray(LOGITS["tokens"])
    positions = np.moveaxis(LOGITS["positions"], 0, -1)
    if key == "text":
        positions = np.repeat(positions[..., :1], 3, axis=-1)
    rows, length = tokens.shape
    inputs = DecoderInputs.zeros(rows, length)._replace(
        tokens=tokens,
        positions=jnp.asarray(positions, jnp.float32),
        attend_end=jnp.broadcast_to(jnp.arange(1, length + 1), tokens.shape),
    )
    logits, _ = jax.jit(Decoder(config).apply)({"params": params}, inputs)
    return np.asarray(logits[..., : config.vocabulary.text_size])


def check_logits(folder, key, **options):
    config, params = load(folder, **options)
    error = np.abs(text_logits(config, params, key) - LOGITS[key]).max()
    print(f"{key}: logits up to {np.abs(LOGITS[key]).max():.2f}, max abs error {error:.2e}")
    assert error <= TOLERANCE


def test_a_text_model_gives_the_logits_of_transformers():
    check_logits(GOLDENS / "text", "text")


@pytest.mark.parametrize("prefix", ["model.", "model.language_model."])
def test_a_vision_language_model_in_both_layouts_gives_the_logits_of_transformers(copy, prefix):
    folder = copy("vl")
    if prefix != "model.":
        with_prefix(folder, prefix)
        edit_config(folder, old_layout)
    check_logits(folder, "vl")


def test_a_tied_head_is_the_token_table(copy):
    folder = copy("vl")
    edit_config(folder, lambda values: values.update(tie_word_embeddings=True))
    check_logits(folder, "vl_tied")


def test_over_eight_devices_every_array_is_split_and_the_same():
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    config, whole = load(GOLDENS / "vl")
    _, split = load(GOLDENS / "vl", mesh)
    assert split["embedding"]["tokens"].sharding.shard_shape(split["embedding"]["tokens"].shape) == (52, 16)
    assert not split["layers"]["mlp"]["up"]["kernel"].sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(split), jax.device_get(whole))


def test_text_rows_are_the_files_bits():
    config, params = load(GOLDENS / "vl")
    arrays = read_arrays(GOLDENS / "vl")
    table = np.asarray(params["embedding"]["tokens"])
    assert table[:90].tobytes() == arrays["model.embed_tokens.weight"].astype(np.float32).tobytes()
    assert not table[90:].any() and id_axes(config) == {"embedding/tokens": 0, "head/kernel": 1}


def test_both_layouts_of_config_json_say_the_same(copy):
    for name in ("text", "vl"):
        folder = copy(name)
        new = read_tower(folder)
        edit_config(folder, old_layout)
        assert read_tower(folder) == new
    assert new.rope_sections == (1, 1, 2) and new.rope_base == 100.0
    assert new.twins == {"bos": 80, "eos": 81, "boi": 82, "eoi": 83}


def test_the_published_sizes_are_the_presets(tmp_path):
    """The config.json of Qwen2.5-VL-7B-Instruct and 3B as far as they concern the tower; not downloaded."""
    seven = {
        "model_type": "qwen2_5_vl", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "rms_norm_eps": 1e-06,
        "tie_word_embeddings": False, "use_sliding_window": False, "hidden_act": "silu", "max_window_layers": 28,
    }  # fmt: skip
    three = {**seven, "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
             "num_attention_heads": 16, "num_key_value_heads": 2, "tie_word_embeddings": True}  # fmt: skip
    for name, values in (("qwen2_5_vl_7b", seven), ("qwen2_5_vl_3b", three)):
        (tmp_path / "config.json").write_text(json.dumps(values))
        config = decoder_config(read_tower(tmp_path), CODES, CODE_DIM, 3)
        for field, value in PRESETS[name].items():
            assert field in ("remat", "dtype") or getattr(config, field) == value, field


def test_another_shape_is_refused_with_all_that_differs():
    checkpoint, config = open_checkpoint(GOLDENS / "vl"), config_of(GOLDENS / "vl")
    other = dataclasses.replace(config, layers=3, tied_head=True, rope_base=10.0, qk_norm=True)
    with pytest.raises(UserError) as refused:
        stream_tower(checkpoint, other)
    message = str(refused.value)
    assert "\n" not in message
    for part in ("layers = 3, there 2", "tied_head = True, there False", "rope_base = 10.0, there 100.0", "qk_norm"):
        assert part in message


def broken_config(**changes):
    return lambda folder: edit_config(folder, lambda values: values.update(changes))


def without_a_shard(folder):
    (folder / "model-00002-of-00003.safetensors").unlink()


def truncated(folder):
    file = folder / "model-00003-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-9])


def without_a_name(folder):
    arrays = read_arrays(folder)
    del arrays["model.layers.1.mlp.up_proj.weight"], arrays["model.layers.0.self_attn.k_proj.bias"]
    arrays["model.layers.0.self_attn.q_norm.weight"] = np.ones(8, np.float32)
    for file in folder.glob("model*"):
        file.unlink()
    write_arrays(folder / "model.safetensors", arrays)


@pytest.mark.parametrize(
    "change, message",
    [
        (without_a_shard, "model-00002-of-00003.safetensors: no such file, and model.safetensors.index.json names it"),
        (truncated, "model-00003-of-00003.safetensors: truncated or corrupt safetensors file"),
        (broken_config(model_type="llama"), "model_type 'llama' cannot be loaded; give a checkpoint of qwen2 or"),
        (broken_config(text_config={"rope_parameters": {"rope_type": "yarn"}, "hidden_act": "gelu"}), "'yarn'.*'gelu'"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (without_a_name, r"missing \(2\): .*k_proj.bias for .*up_proj.weight for .*; unmapped \(1\): .*q_norm"),
        (lambda folder: (folder / "model.safetensors.index.json").unlink(), "has neither model.safetensors nor"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(copy, change, message):
    folder = copy("vl")
    config = config_of(folder)
    change(folder)
    with pytest.raises(UserError, match=message) as refused:
        stream_tower(open_checkpoint(folder), config)
    assert "\n" not in str(refused.value)

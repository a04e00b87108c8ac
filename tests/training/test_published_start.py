"""A run from published weights: their bits in the layout, new rows by rule, named mistakes; on without the source."""

import dataclasses
import io
import shutil

import jax
import numpy as np
import pytest
from flax import traverse_util

from nextflow_jax import chat, sharding
from nextflow_jax.bundle import load_bundle
from nextflow_jax.config import preflight, to_plain_dict
from nextflow_jax.convert.qwen2_5 import open_checkpoint
from nextflow_jax.convert.weight_files import read_arrays
from nextflow_jax.errors import UserError
from nextflow_jax.export import export_hf, export_run
from nextflow_jax.models.presets import decoder_preset
from nextflow_jax.sampling.requests import Request
from nextflow_jax.sampling.sampler import Sampler
from nextflow_jax.sharding import MeshConfig
from nextflow_jax.text import load_text_tokenizer
from nextflow_jax.training.checkpoint import read_meta, restore_variables
from nextflow_jax.training.experiment import prepare_experiment
from nextflow_jax.training.keys import stream_key
from nextflow_jax.training.loop import train
from nextflow_jax.training.state import abstract_variables, init_state, make_layout
from nextflow_jax.training.tasks import make_task
from nextflow_jax.training.warm_start import InitFromConfig
from nextflow_jax.vocabulary import Vocabulary
from tests import qwen_folder, tiny_models
from tests.training import small
from tests.training.toy import toy_experiment

TOWER = {
    "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "head_size": 8, "mlp_width": 40, "rope_sections": (1, 1, 2),
    "rope_base": 100.0, "norm_eps": 1e-6, "attention_bias": True, "qk_norm": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return qwen_folder.make(tmp_path_factory.mktemp("qwen") / "tiny")


@pytest.fixture(scope="module")
def shards(tmp_path_factory, folder):
    out = tmp_path_factory.mktemp("shards") / "shards"
    small.write_shards(out, load_text_tokenizer(folder))
    return out


def experiment_of(shards, folder, mesh=MeshConfig(), steps=1, **changes):  # noqa: B008  (frozen)
    base = small.decoder(shards, mesh, steps=steps)
    model = decoder_preset("tiny", Vocabulary(0, 0, 8), 0, 0, **{**TOWER, **changes})
    return dataclasses.replace(base, model=model, init_from=InitFromConfig(weights=str(folder)))


def start_state(experiment, devices=1):
    """The state that training starts with, on the host, by flat name."""
    task = make_task(experiment)
    mesh = sharding.make_mesh(experiment.mesh, jax.devices()[:devices])
    layout = make_layout(task, experiment.optimizer, 1, mesh, sharding.make_rules())
    start = experiment.load_start(lambda: abstract_variables(task))
    state = init_state(task, layout, 0, start.apply, start.given)
    placements = jax.tree.map(lambda leaf: leaf.sharding, state.params)
    assert placements == layout.shardings.params
    return start, traverse_util.flatten_dict(jax.device_get(state.params), sep="/")


def test_what_every_array_starts_as(shards, folder):
    experiment = experiment_of(shards, folder).with_input_sizes()
    vocabulary = experiment.model.vocabulary
    assert vocabulary.text_size == 90 and load_text_tokenizer(folder).size == 87
    start, made = start_state(experiment)
    theirs = read_arrays(folder)
    assert start.count == 15 and "qwen2_5_vl weights 'tiny'" in start.origin
    table, head = made["embedding/tokens"], made["head/kernel"]
    for ours, name in ((table, "model.embed_tokens.weight"), (head.T, "lm_head.weight")):
        text = theirs[name].astype(np.float32)
        assert np.ascontiguousarray(ours[:90]).tobytes() == text.tobytes()
        for special, twin in (("bos", 80), ("eos", 81), ("boi", 82), ("eoi", 83)):
            np.testing.assert_array_equal(ours[getattr(vocabulary, special)], text[twin])
        np.testing.assert_allclose(ours[vocabulary.pad], text.mean(axis=0), atol=1e-5)
        codes = ours[vocabulary.vision_offset : vocabulary.used]
        connector = {name: made[f"embedding/connector/out/{name}"] for name in ("kernel", "bias")}
        expected = tiny_models.codec().codebook @ connector["kernel"] + connector["bias"]
        expected *= np.linalg.norm(text, axis=1).mean() / np.linalg.norm(expected, axis=1).mean()
        np.testing.assert_allclose(codes, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(made["embedding/codes"], tiny_models.codec().codebook)
    # What the checkpoint has no part in is what a run without it starts with.
    fresh = jax.jit(make_task(experiment).init)(stream_key(0, "init"))["params"]["embedding"]
    np.testing.assert_array_equal(made["embedding/connector/out/kernel"], fresh["connector"]["out"]["kernel"].value)
    np.testing.assert_array_equal(made["embedding/scales"], fresh["scales"].value)


def test_separate_heads_over_eight_devices_are_those_of_one(shards, folder):
    _, one = start_state(experiment_of(shards, folder, head="separate").with_input_sizes())
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    _, eight = start_state(experiment_of(shards, folder, mesh, head="separate").with_input_sizes(), 8)
    assert one.keys() == eight.keys()
    for name, array in one.items():
        grown = any(word in name for word in ("tokens", "head", "connector", "scales"))
        np.testing.assert_allclose(eight[name], array, rtol=1e-5 if grown else 0, atol=1e-6 if grown else 0)
    text = np.linalg.norm(one["head/text_kernel"][:, :90], axis=0).mean()
    assert np.linalg.norm(one["head/vision_kernel"][:, :24], axis=0).mean() == pytest.approx(text, rel=1e-4)


def test_a_run_starts_there_and_goes_on_without_it(shards, folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    said = io.StringIO()
    prepared = prepare_experiment(to_plain_dict(experiment_of(shards, source)), 1)
    train(prepared, make_task(prepared), tmp_path / "run", jax.devices()[:1], said)
    assert "starting with 15 arrays of qwen2_5_vl weights 'source' (config " in said.getvalue()
    shutil.rmtree(source)
    more = dataclasses.replace(prepared, train=dataclasses.replace(prepared.train, steps=2))
    train(more, make_task(more), tmp_path / "run", jax.devices()[:1], said)
    assert read_meta(tmp_path / "run")["fingerprints"]["init_from"].startswith("qwen2_5_vl weights 'source'")
    norm = restore_variables(tmp_path / "run").params["final_norm"]["scale"]
    theirs = read_arrays(folder)["model.norm.weight"].astype(np.float32)
    assert 0 < np.abs(norm - theirs).max() < 0.02
    check_the_rest_of_the_way(tmp_path, folder)


def check_the_rest_of_the_way(tmp_path, folder):
    """The run's tokenizer.json and chat template reach the sampler, and the run's Hugging Face folder a next run."""
    bundle = load_bundle(export_run(tmp_path / "run", tmp_path / "bundle"))
    assert bundle.text_tokenizer.fingerprint == load_text_tokenizer(folder).fingerprint
    assert bundle.decoder.config.vocabulary.text_size == 90
    parts = chat.to_document([{"role": "user", "content": "a red sun"}], bundle.text_tokenizer.chat_template)
    assert [part.text for part in parts] == ["<|im_start|>user\na red sun<|im_end|>\n<|im_start|>assistant\n"]
    request = Request([part.text for part in parts], max_images=0, max_text_tokens=3)
    (result,) = Sampler(bundle).generate([request])
    assert len(result.segments[0].tokens) <= 3 and result.segments[0].tokens.max() < 95
    export_hf(tmp_path / "run", tmp_path / "hf", source=folder)
    checkpoint = open_checkpoint(tmp_path / "hf")
    assert checkpoint.tower.model_type == "qwen2_5_vl" and any(name.startswith("visual.") for name in checkpoint.arrays)
    trained = restore_variables(tmp_path / "run").params
    np.testing.assert_array_equal(checkpoint.ours["embedding/tokens"], trained["embedding"]["tokens"][90:])


def test_a_later_stage_keeps_the_padded_table(shards, folder):
    stage = dataclasses.replace(experiment_of(shards, folder), init_from=InitFromConfig())
    assert stage.with_input_sizes().model.vocabulary.text_size == 87
    padded = dataclasses.replace(stage.model, vocabulary=Vocabulary(90, 0, 8))
    complete = dataclasses.replace(stage, model=padded).with_input_sizes()
    assert complete.model.vocabulary.text_size == 90
    batch = next(make_task(complete).batches(0, 0, 1))
    vocabulary = complete.model.vocabulary
    assert {vocabulary.bos, vocabulary.boi} <= set(batch["tokens"].ravel()) and batch["targets"].max() >= 95
    small_table = dataclasses.replace(stage.model, vocabulary=Vocabulary(80, 0, 8))
    with pytest.raises(UserError, match="text_size = 80: the shards have 87"):
        dataclasses.replace(stage, model=small_table).with_input_sizes()


def test_mistakes_are_named(shards, folder, tmp_path):
    both = InitFromConfig(workdir="runs/a", weights=str(folder))
    with pytest.raises(UserError, match="weights = .*a run starts from one source, and workdir is 'runs/a'"):
        preflight(both)
    (fault,) = InitFromConfig(weights=str(folder)).input_faults(("tokenizer",))
    assert "are weights of a decoder" in fault.rule
    (fault,) = InitFromConfig(weights=str(tmp_path)).input_faults(("decoder",))
    assert "has no config.json" in fault.rule
    assert [f.field for f in InitFromConfig(weights="x", fresh=("a",)).faults()] == ["fresh"]
    gone = dataclasses.replace(toy_experiment(), init_from=InitFromConfig(weights=str(folder)))
    assert [fault.field for fault in gone.input_faults()] == ["init_from.weights"]


def test_another_tokenizer_or_shape_is_refused(shards, folder, tmp_path):
    other = qwen_folder.make(tmp_path / "other")
    model = qwen_folder.tokenizer()
    model.add_tokens(["another"])
    model.save(str(other / "tokenizer.json"))
    experiment = experiment_of(shards, other).with_input_sizes()
    task = make_task(experiment)
    with pytest.raises(UserError, match="fingerprint .* tokenized with .* config.text.path="):
        experiment.load_start(lambda: abstract_variables(task))
    wide = experiment_of(shards, folder, mlp_width=48, tied_head=True).with_input_sizes()
    with pytest.raises(UserError, match="tied_head = True, there False|mlp_width = 48, there 40"):
        wide.load_start(lambda: abstract_variables(task))

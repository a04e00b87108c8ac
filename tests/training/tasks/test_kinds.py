"""Each kind trains, stops and resumes bit for bit; the decoder gives the same on eight devices; artifacts, refusals."""

import dataclasses
import functools
import io
import json
import os
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax import sharding
from nextflow_jax.bundle import load_bundle
from nextflow_jax.config import to_plain_dict
from nextflow_jax.errors import UserError
from nextflow_jax.sharding import MeshConfig
from nextflow_jax.text import load_text_tokenizer
from nextflow_jax.training.checkpoint import Checkpoints, Position, checkpoint_steps, read_meta, restore_variables
from nextflow_jax.training.experiment import build_experiment
from nextflow_jax.training.loop import train
from nextflow_jax.training.metrics import read_metrics
from nextflow_jax.training.state import make_layout
from nextflow_jax.training.step import make_train_step
from nextflow_jax.training.tasks import make_task
from tests import tiny_models
from tests.training import small

TIMINGS = ("time", "tokens_per_s", "examples_per_s", "step_ms", "data_wait")
ONE = jax.devices()[:1]


class StopEarly:
    """A task that sends SIGTERM to its process while it makes the third batch."""

    def __init__(self, task):
        self._task = task

    def __getattr__(self, name):
        return getattr(self._task, name)

    def batches(self, start, part, num_parts):
        for index, batch in enumerate(self._task.batches(start, part, num_parts)):
            if index == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.05)
            yield batch


@pytest.fixture(scope="module", autouse=True)
def drawn_pictures():
    with pytest.MonkeyPatch.context() as monkeypatch:
        small.register_drawn(monkeypatch)
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Folder with a checkpoint of a dual encoder that was never trained: compiling its step takes long."""
    folder = tmp_path_factory.mktemp("teacher")
    experiment = small.contrastive()
    task = make_task(experiment)
    task.save_artifacts(folder)
    layout = layout_of(task)
    fresh = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, leaf.dtype), layout.abstract)
    with Checkpoints(folder, 1, to_plain_dict(experiment), task.describe()) as checkpoints:
        checkpoints.save(1, fresh, Position(1))
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    out = tmp_path_factory.mktemp("extracted") / "shards"
    small.write_shards(out)
    return out


@pytest.fixture(scope="module")
def experiments(teacher, shards):
    return {"tokenizer": small.tokenizer(teacher), "decoder": small.decoder(shards).with_input_sizes()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, experiments):
    """kind -> (folder, last state) of its uninterrupted run, made when it is first asked for."""

    @functools.cache
    def run(kind):
        folder = tmp_path_factory.mktemp(kind)
        state = train(experiments[kind], make_task(experiments[kind]), folder, ONE, io.StringIO())
        return folder, jax.device_get(state)

    return run


def layout_of(task):
    return make_layout(task, small.OPTIMIZER, 6, sharding.make_mesh(MeshConfig(), ONE), sharding.make_rules())


def logged(workdir):
    return [{k: v for k, v in record.items() if k not in TIMINGS} for record in read_metrics(workdir)]


@pytest.mark.parametrize("kind", ["tokenizer", "decoder"])
def test_it_learns_and_resumes_bit_for_bit(kind, runs, experiments, tmp_path):
    (folder, expected), experiment = runs(kind), experiments[kind]
    train(experiment, StopEarly(make_task(experiment)), tmp_path, ONE, io.StringIO())
    assert 0 < checkpoint_steps(tmp_path)[-1] < experiment.train.steps
    state = train(experiment, make_task(experiment), tmp_path, ONE, io.StringIO())
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), expected)
    assert logged(tmp_path) == logged(folder)
    losses = [record["loss"] for record in logged(folder)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_a_config_file_gives_the_experiment_back(runs, experiments):
    folder, _ = runs("decoder")
    experiment = build_experiment(json.loads((folder / "config.json").read_text()))
    assert experiment == experiments["decoder"]
    assert experiment.model.vocabulary.text_size == tiny_models.text_tokenizer().size
    assert read_meta(folder)["fingerprints"]["vision_tokenizer"] == tiny_models.codec().fingerprint


def test_the_contrastive_task_traces_and_keeps_its_text_tokenizer(teacher):
    task = make_task(small.contrastive())
    layout, step = layout_of(task), make_train_step(task, layout_of(task).optimizer, 0)
    state, metrics = jax.eval_shape(step, layout.abstract, task.constants(), task.batch_spec())
    assert jax.tree.structure(state) == jax.tree.structure(layout.abstract)
    assert {"loss", "retrieval/image_to_text"} <= metrics.keys()
    tokenizer = load_text_tokenizer(teacher)
    assert read_meta(teacher)["fingerprints"]["text_tokenizer"] == tokenizer.fingerprint


def test_captions_are_drawn_among_the_languages_and_parts_join():
    task = make_task(small.contrastive())
    whole, again = (next(task.batches(3, 0, 1)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    parts = [next(task.batches(3, part, 2)) for part in range(2)]
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    jax.tree.map(np.testing.assert_array_equal, whole, joined)
    texts = {task.text_tokenizer.decode(row[:n].tolist()) for row, n in zip(whole["tokens"], whole["lengths"])}
    assert any(text.startswith("Q") for text in texts) and any(text.startswith("a ") for text in texts)
    assert task.flops_per_step(jax.eval_shape(task.init, jax.random.key(0))["params"]) > 0


def test_the_semantic_encoder_starts_as_the_teacher(teacher, runs, experiments):
    tower = restore_variables(teacher).params["vision"]
    zeros = jax.tree.map(np.zeros_like, tower)
    start = make_task(experiments["tokenizer"]).after_init({"params": {"semantic_encoder": zeros, "rest": 1}})
    jax.tree.map(np.testing.assert_array_equal, start["params"]["semantic_encoder"], tower)
    assert "psnr" in read_metrics(runs("tokenizer")[0])[-1]
    assert restore_variables(runs("tokenizer")[0]).variables["codebook"]["quantizer"]["age"].dtype == np.int32


def test_the_decoder_starts_with_the_codebook_and_keeps_the_tokenizers(runs, experiments):
    task = make_task(experiments["decoder"])
    codebook = tiny_models.codec().codebook
    variables = task.after_init({"params": {"embedding": {"codes": jnp.zeros(codebook.shape)}}})
    np.testing.assert_array_equal(variables["params"]["embedding"]["codes"], codebook)
    bundle = load_bundle(runs("decoder")[0] / "tokenizer")
    assert bundle.codec.fingerprint == tiny_models.codec().fingerprint
    assert {"accuracy/text", "cross_entropy/scale_03", "fill"} <= read_metrics(runs("decoder")[0])[-1].keys()


def test_decoder_on_eight_devices_equals_one(runs, shards, tmp_path):
    settings = dataclasses.replace(small.decoder(shards, MeshConfig(data=2, fsdp=2, tensor=2))).with_input_sizes()
    state = train(settings, make_task(settings), tmp_path, jax.devices(), io.StringIO())
    assert not state.params["head"]["kernel"].sharding.is_fully_replicated
    folder, expected = runs("decoder")
    params = jax.device_get(state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), params, expected.params)
    for ours, theirs in zip(logged(tmp_path), logged(folder), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def test_accumulated_inputs_come_with_features(shards):
    task = make_task(small.decoder(shards, inputs="accumulated").with_input_sizes())
    batch = next(task.batches(0, 0, 2))
    assert batch["vision_features"].shape == (4, 64, tiny_models.TOKENIZER_CONFIG.quantizer.dim)
    assert task.batch_spec()["vision_features"].shape[0] == 8


def test_flops_and_tokens_of_a_step(experiments):
    task = make_task(experiments["decoder"])
    params = jax.eval_shape(task.init, jax.random.key(0))["params"]
    weights = sum(leaf.size for leaf in jax.tree.leaves(params)) - sum(
        params["embedding"][name].value.size for name in ("tokens", "codes", "scales")
    )
    assert task.tokens_per_step == 8 * 64
    assert task.flops_per_step(jax.tree.map(lambda x: x, params)) == pytest.approx(6 * weights * 8 * 64, rel=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_width": 16}, "config.model.teacher_width = 16: the teacher .* has 8"),
        ({"vit": dataclasses.replace(small.VIT, patch=2)}, "config.model.vit.patch = 2: the teacher .* has 4"),
    ],
)
def test_a_teacher_that_does_not_fit(teacher, change, message):
    experiment = small.tokenizer(teacher)
    experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **change))
    with pytest.raises(UserError, match=message):
        make_task(experiment)


def test_a_teacher_of_another_kind(runs):
    with pytest.raises(UserError, match="holds a run of kind 'decoder'"):
        make_task(small.tokenizer(runs("decoder")[0]))


def test_shards_of_other_tokenizers_are_refused(shards, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(shards, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "text_tokenizer": "another"}))
    with pytest.raises(UserError, match="text tokenizer: shards have another"):
        make_task(small.decoder(other).with_input_sizes())

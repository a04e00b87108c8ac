"""The decoder task: bit-for-bit resume, the same on eight devices, codebook and tokenizers, shards that do not fit."""

import dataclasses
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax import sharding
from nextflow_jax.bundle import load_bundle
from nextflow_jax.data.mixture import MixtureConfig
from nextflow_jax.errors import UserError
from nextflow_jax.sharding import MeshConfig
from nextflow_jax.training.checkpoint import read_meta
from nextflow_jax.training.experiment import build_experiment
from nextflow_jax.training.feed import Feed
from nextflow_jax.training.loop import train
from nextflow_jax.training.metric_table import find_row
from nextflow_jax.training.tasks import make_task
from tests import tiny_models
from tests.training import small


@pytest.fixture(scope="module")
def experiment(shards):
    return small.decoder(shards).with_input_sizes()


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
    """Folder and last state of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("decoder")
    return folder, small.run(experiment, folder)


def test_it_learns_and_resumes_bit_for_bit(finished, experiment, tmp_path):
    small.check_resume(experiment, *finished, tmp_path)
    assert {"accuracy/text", "cross_entropy/scale_03", "fill"} <= small.logged(tmp_path)[-1].keys()


def test_the_log_has_the_mixture_of_the_batches_trained_on(finished, experiment):
    """Counted again from the batches themselves."""
    batches = make_task(experiment).batches(0, 0, 1)
    for record in small.logged(finished[0]):
        documents = [next(batches)["document"] for _ in range(2)]
        assert record["data/padding_share"] == pytest.approx(np.mean([array == 0 for array in documents]))
        assert record["data/padding_share"] == pytest.approx(1 - record["fill"])
        held = np.mean([array.max(axis=1) for array in documents])
        assert record["data/documents_per_row"] == pytest.approx(held)
        assert record["data/cost_imbalance"] >= 1 and record["data/epochs/all"] > 0
        shares = [value for name, value in record.items() if name.startswith("data/tokens/")]
        assert sum(shares) == pytest.approx(1)
        assert all(find_row(name) for name in record if name.startswith("data/"))


def test_a_run_longer_than_its_data_is_refused_before_anything_is_compiled(shards):
    settings = small.decoder(shards)
    mixture = MixtureConfig(max_epochs=(("all", 2.0),))
    pipeline = dataclasses.replace(settings.pipeline, mixture=mixture)
    settings = dataclasses.replace(settings, pipeline=pipeline, train=dataclasses.replace(settings.train, steps=1000))
    with pytest.raises(
        UserError, match=r"the data end after global batch \d+: .* set config.train.steps to \d+ at most"
    ):
        make_task(settings.with_input_sizes())


def test_eight_devices_equal_one(finished, shards, tmp_path):
    settings = small.decoder(shards, MeshConfig(fsdp=2, tensor=2, context=2)).with_input_sizes()
    state = train(settings, make_task(settings), tmp_path, jax.devices(), io.StringIO())
    assert not state.params["head"]["kernel"].sharding.is_fully_replicated
    folder, expected = finished
    params = jax.device_get(state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), params, expected.params)
    for ours, theirs in zip(small.logged(tmp_path), small.logged(folder), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def test_a_config_file_gives_the_experiment_back(finished, experiment):
    folder = finished[0]
    assert build_experiment(json.loads((folder / "config.json").read_text())) == experiment
    assert experiment.model.vocabulary.text_size == tiny_models.text_tokenizer().size
    assert read_meta(folder)["fingerprints"]["vision_tokenizer"] == tiny_models.codec().fingerprint


def test_the_decoder_starts_with_the_codebook_and_keeps_the_tokenizers(finished, experiment):
    task = make_task(experiment)
    codebook = tiny_models.codec().codebook
    variables = task.after_init({"params": {"embedding": {"codes": jnp.zeros(codebook.shape)}}})
    np.testing.assert_array_equal(variables["params"]["embedding"]["codes"], codebook)
    bundle = load_bundle(finished[0] / "tokenizer")
    assert bundle.codec.fingerprint == tiny_models.codec().fingerprint


def test_positions_of_batches_arrive_split_over_the_context_axis(experiment):
    task, mesh = make_task(experiment), sharding.make_mesh(MeshConfig(fsdp=2, context=4))
    places = sharding.batch_sharding(mesh, sharding.make_rules(), task.batch_axes())
    with Feed(task, 0, places, depth=1) as feed:
        batch = feed.next_batch()
    expected = next(task.batches(0, 0, 1))
    for name, array in batch.items():
        assert {shard.data.shape for shard in array.addressable_shards} == {(4, 16, *array.shape[2:])}
        np.testing.assert_array_equal(array, expected[name])


def test_rows_that_the_context_axis_does_not_divide_are_a_fault(shards):
    faults = [*small.decoder(shards, MeshConfig(context=3)).device_faults(3)]
    rule = "must be a multiple of mesh.context = 3"
    assert [(fault.field, fault.rule, fault.fix) for fault in faults] == [("pipeline.row_length", rule, "use 66")]


def test_accumulated_inputs_come_with_features(shards):
    task = make_task(small.decoder(shards, inputs="accumulated").with_input_sizes())
    batch = next(task.batches(0, 0, 2))
    assert batch["vision_features"].shape == (4, 64, tiny_models.TOKENIZER_CONFIG.quantizer.dim)
    assert task.batch_specs()[0]["vision_features"].shape[0] == 8


def test_flops_and_tokens_of_a_step(experiment):
    task = make_task(experiment)
    params = jax.eval_shape(task.init, jax.random.key(0))["params"]
    weights = sum(leaf.size for leaf in jax.tree.leaves(params)) - sum(
        params["embedding"][name].value.size for name in ("tokens", "codes", "scales")
    )
    assert task.tokens_per_step(task.batch_specs()[0]) == 8 * 64
    assert task.flops_per_step(params, task.batch_specs()[0]) == pytest.approx(6 * weights * 8 * 64, rel=0.5)


def test_shards_of_other_tokenizers_are_refused(shards, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(shards, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "text_tokenizer": "another"}))
    with pytest.raises(UserError, match="text tokenizer: shards have another"):
        make_task(small.decoder(other).with_input_sizes())

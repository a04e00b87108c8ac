"""A run's checkpoint becomes a bundle with the same weights, or a reason why it does not."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.core import meta

from nextflow_jax import export
from nextflow_jax.bundle import load_bundle, save_bundle
from nextflow_jax.config import to_plain_dict
from nextflow_jax.convert.qwen2_5 import open_checkpoint
from nextflow_jax.convert.qwen2_5_config import read_tower
from nextflow_jax.data.pipeline import PipelineConfig
from nextflow_jax.errors import UserError
from nextflow_jax.models.decoder import Decoder, DecoderInputs
from nextflow_jax.sequence import SequenceConfig
from nextflow_jax.training.checkpoint import Checkpoints, Position, restore_variables
from nextflow_jax.training.experiment import ContrastiveExperiment, DecoderExperiment, TokenizerExperiment
from nextflow_jax.training.state import TrainState
from nextflow_jax.vision.codec import VisionTokenizerCodec
from tests import tiny_models


def save_run(workdir, experiment, variables, fingerprints, steps=(4, 8), ema=None):
    """Checkpoints as the training loop leaves them; the weights of each step are `variables` times the step."""
    collections = dict(variables)
    params = collections.pop("params")
    with Checkpoints(workdir, len(steps), to_plain_dict(experiment), fingerprints) as checkpoints:
        for step in steps:
            scaled = jax.tree.map(lambda x, step=step: x * step, params)
            state = TrainState(np.int32(step), scaled, collections, {}, {} if ema is None else ema)
            checkpoints.save(step, state, Position(step))
    return workdir


def decoder_experiment():
    part = tiny_models.decoder_part()
    experiment = DecoderExperiment(name="tiny")
    evaluation = dataclasses.replace(experiment.evaluation, sampling=tiny_models.bundle().defaults)
    pipeline = PipelineConfig(shards="gone", row_length=80, sequence=SequenceConfig(scale_reweight=0.9))
    pipeline = dataclasses.replace(pipeline, last_scale_context=True)
    return dataclasses.replace(experiment, model=part.config, pipeline=pipeline, evaluation=evaluation)


FINGERPRINTS = {
    "vision_tokenizer": tiny_models.codec().fingerprint,
    "text_tokenizer": tiny_models.text_tokenizer().fingerprint,
    "shards": "0123",
}


@pytest.fixture(scope="module")
def decoder_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("decoder")
    source = tiny_models.bundle()
    save_bundle(workdir / "tokenizer", vision_tokenizer=source.codec, text_tokenizer=source.text_tokenizer, origin={})
    return save_run(workdir, decoder_experiment(), source.decoder.variables, FINGERPRINTS)


def same_trees(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_the_mean_of_two_checkpoints(decoder_run, tmp_path):
    """The weights of steps 4 and 8 are the same ones, times the step."""
    export.main(["--workdir", str(decoder_run), "--out", str(tmp_path / "bundle"), "--average", "2"])
    bundle, source = load_bundle(tmp_path / "bundle"), tiny_models.bundle()
    assert same_trees(bundle.decoder.variables, jax.tree.map(lambda x: x * 6, source.decoder.variables))
    assert bundle.origin["averaged_steps"] == [4, 8]


def test_a_decoder_run_becomes_a_bundle(decoder_run, tmp_path, capsys):
    export.main(["--workdir", str(decoder_run), "--out", str(tmp_path / "bundle")])
    assert str(tmp_path / "bundle") in capsys.readouterr().out
    bundle, source, experiment = load_bundle(tmp_path / "bundle"), tiny_models.bundle(), decoder_experiment()
    assert same_trees(bundle.decoder.variables, jax.tree.map(lambda x: x * 8, source.decoder.variables))
    assert bundle.decoder.config == experiment.model
    assert bundle.decoder.sequence == experiment.pipeline.sequence
    assert (bundle.decoder.last_scale_context, bundle.decoder.max_positions) == (True, 80)
    assert bundle.defaults == experiment.evaluation.sampling
    assert bundle.origin == {"kind": "decoder", "name": "tiny", "step": 8, "fingerprints": FINGERPRINTS}
    assert bundle.codec.fingerprint == source.codec.fingerprint


def test_an_older_step_can_be_had_and_an_absent_one_not(decoder_run, tmp_path):
    bundle = load_bundle(export.export_run(decoder_run, tmp_path / "bundle", step=4))
    assert bundle.origin["step"] == 4
    assert same_trees(bundle.decoder.variables, jax.tree.map(lambda x: x * 4, tiny_models.bundle().decoder.variables))
    with pytest.raises(UserError, match="no checkpoint of step 5; there are: 4, 8"):
        export.export_run(decoder_run, tmp_path / "other", step=5)


def test_a_tokenizer_run_becomes_a_bundle_without_decoder_and_text(tmp_path):
    codec = tiny_models.codec()
    experiment = TokenizerExperiment(model=codec.config)
    average = jax.tree.map(lambda x: x + 1, codec.variables["params"])
    save_run(tmp_path / "run", experiment, codec.variables, {}, ema=average)
    bundle = load_bundle(export.export_run(tmp_path / "run", tmp_path / "bundle"))
    assert bundle.decoder is None and bundle.text_tokenizer is None
    assert same_trees(bundle.codec.variables["params"], average), "the moving average is what is exported"
    assert same_trees(bundle.codec.variables["codebook"], codec.variables["codebook"])


def test_tokenizers_that_the_decoder_was_not_trained_with_are_refused(tmp_path):
    source = tiny_models.bundle()
    variables = jax.tree.map(lambda x: x + 1, source.codec.variables)
    other = VisionTokenizerCodec(source.codec.config, variables)
    save_bundle(tmp_path / "tokenizer", vision_tokenizer=other, text_tokenizer=source.text_tokenizer, origin={})
    save_run(tmp_path, decoder_experiment(), source.decoder.variables, FINGERPRINTS, steps=(4,))
    with pytest.raises(UserError) as error:
        export.export_run(tmp_path, tmp_path / "bundle")
    assert other.fingerprint[:12] in str(error.value) and source.codec.fingerprint[:12] in str(error.value)
    save_bundle(tmp_path / "tokenizer", vision_tokenizer=source.codec, origin={})
    with pytest.raises(UserError, match="text_tokenizer none"):
        export.export_run(tmp_path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_runs_without_a_bundle_are_refused(tmp_path):
    save_run(tmp_path / "teacher", ContrastiveExperiment(), {"params": {"w": np.ones(2, np.float32)}}, {}, steps=(1,))
    with pytest.raises(UserError, match="a run of kind 'contrastive' has no bundle"):
        export.export_run(tmp_path / "teacher", tmp_path / "bundle")
    with pytest.raises(UserError, match="holds no vision tokenizer"):
        export.codec_of_run(restore_variables(tmp_path / "teacher"))
    with pytest.raises(UserError, match="has no checkpoints"):
        export.export_run(tmp_path, tmp_path / "bundle")


def test_a_qwen_like_decoder_becomes_a_hugging_face_folder(tmp_path, capsys):
    source, experiment = tiny_models.bundle(), decoder_experiment()
    config = dataclasses.replace(experiment.model, attention_bias=True)
    init = jax.eval_shape(lambda: Decoder(config).init(jax.random.key(0), DecoderInputs.zeros(1, 1)))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 1.001, leaf.dtype), meta.unbox(init))
    run = tmp_path / "run"
    save_bundle(run / "tokenizer", vision_tokenizer=source.codec, text_tokenizer=source.text_tokenizer, origin={})
    save_run(run, dataclasses.replace(experiment, model=config), params, FINGERPRINTS, steps=(4,))
    export.main(["--workdir", str(run), "--out", str(tmp_path / "hf"), "--format", "hf"])
    assert "in Hugging Face layout, float32" in capsys.readouterr().out
    tower = read_tower(tmp_path / "hf")
    assert (tower.text_size, tower.layers, tower.width) == (source.text_tokenizer.size, config.layers, config.width)
    norm = open_checkpoint(tmp_path / "hf").arrays["model.norm.weight"]
    np.testing.assert_array_equal(norm, np.full(config.width, 1.001 * 4, np.float32))


def test_other_decoders_and_kinds_have_no_hugging_face_folder(decoder_run, tmp_path):
    with pytest.raises(UserError, match="attention_bias = False: Qwen2 has biases .*export a bundle"):
        export.export_hf(decoder_run, tmp_path / "hf")
    with pytest.raises(UserError, match="--source .*: is for --format hf"):
        export.main(["--workdir", str(decoder_run), "--out", str(tmp_path / "b"), "--source", "x"])
    save_run(tmp_path / "run", ContrastiveExperiment(), {"params": {"a": np.ones(1)}}, {}, steps=(1,))
    with pytest.raises(UserError, match="'contrastive' is no language model"):
        export.export_hf(tmp_path / "run", tmp_path / "hf")

"""Experiments: every cross-field rule has its message, sizes come from the shards, all faults come at once."""

import dataclasses

import pytest

from nextflow_jax.config import preflight, to_config_dict
from nextflow_jax.errors import UserError
from nextflow_jax.sharding import MeshConfig
from nextflow_jax.training.experiment import (
    EXPERIMENTS,
    ContrastiveExperiment,
    DecoderExperiment,
    TokenizerExperiment,
    build_experiment,
    prepare_experiment,
)
from nextflow_jax.vision.codebook import QuantizerConfig
from nextflow_jax.vision.losses import TokenizerLossConfig
from nextflow_jax.vision.tokenizer import VisionTokenizerConfig
from tests import tiny_models
from tests.training import small

SINGLE = VisionTokenizerConfig(quantizer=QuantizerConfig(semantic_dim=0))
TRAINED = VisionTokenizerConfig(quantizer=QuantizerConfig(learned="gradient"))


@pytest.mark.parametrize("kind", EXPERIMENTS)
def test_a_config_dict_gives_the_experiment_back(kind):
    experiment = EXPERIMENTS[kind]()
    assert build_experiment(to_config_dict(experiment)) == experiment


def broken(experiment, **fields):
    return dataclasses.replace(experiment, **fields)


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        (broken(ContrastiveExperiment(), pictures=small.PICTURES), r"config.pictures.size = \(12, 12\): must be mult"),
        (TokenizerExperiment(), "config.teacher = '': distillation and init_from_teacher need a teacher"),
        (broken(TokenizerExperiment(), pictures=small.PICTURES), "must be in model.family.sizes"),
        (
            broken(TokenizerExperiment(teacher="runs/t", init_from_teacher=True), model=SINGLE),
            "config.teacher = 'runs/t': a single codebook .* set it to ''.*config.init_from_teacher = True: "
            "a single .* set it to False.*config.loss.distillation_cosine = 0.1: .* set it to 0.0.*"
            "config.loss.distillation_l2",
        ),
        (
            broken(TokenizerExperiment(), model=TRAINED),
            "config.loss.vq = 0.0: .*nothing else trains the codes; set it to",
        ),
        (broken(TokenizerExperiment(), loss=TokenizerLossConfig(vq=1.0)), "config.loss.vq = 1.0: .*are no parameters"),
        (
            broken(TokenizerExperiment(), loss=TokenizerLossConfig(entropy_batch=0.1)),
            "config.model.quantizer.entropy_temperature = 0.0: .*need the quantizer's entropies; set it to",
        ),
        (broken(TokenizerExperiment(), mirror_share=2.0), "config.mirror_share = 2.0: is a share"),
        (broken(ContrastiveExperiment(), rules=(("embde", ()),)), "config.rules.*did you mean embed"),
        (broken(ContrastiveExperiment(), train=dataclasses.replace(small.TRAIN, steps=0)), "config.train.steps = 0"),
        (broken(ContrastiveExperiment(), mesh=MeshConfig(data=-1, fsdp=-1)), "config.mesh.fsdp = -1: only one axis"),
        (DecoderExperiment(), "config.model.vocabulary.text_size = 0: must be positive"),
    ],
)
def test_broken_rules(experiment, message):
    with pytest.raises(UserError, match=message):
        preflight(experiment)


@pytest.mark.parametrize(
    ("mesh", "batch_size", "message"),
    [
        (MeshConfig(tensor=3), 8, "config.mesh = .*3 does not divide the 8 devices"),
        (MeshConfig(data=2, fsdp=2, tensor=2), 6, "config.train.batch_size = 6: must be a multiple.* = 4; use 4 or 8"),
    ],
)
def test_what_does_not_fit_the_devices(mesh, batch_size, message):
    train = dataclasses.replace(small.TRAIN, batch_size=batch_size)
    with pytest.raises(UserError, match=message):
        prepare_experiment(to_config_dict(ContrastiveExperiment(mesh=mesh, train=train)), num_devices=8)


def test_missing_inputs_come_with_all_other_faults(tmp_path):
    values = to_config_dict(small.decoder(tmp_path / "none", log_every=0, batch_size=3))
    with pytest.raises(UserError) as error:
        prepare_experiment(values, num_devices=8)
    for part in ("config.pipeline.shards = ", "manifest.json is missing", "log_every = 0", "batch_size = 3"):
        assert part in str(error.value)
    assert "text_size" not in str(error.value)
    with pytest.raises(UserError, match="config.teacher = .*has no checkpoint"):
        prepare_experiment(to_config_dict(small.tokenizer(tmp_path)), num_devices=8)
    with pytest.raises(UserError, match="config.pipeline.shards = '': training needs shards"):
        prepare_experiment(to_config_dict(DecoderExperiment()), num_devices=8)


def test_sizes_come_from_the_shards_and_set_ones_must_agree(tmp_path):
    small.write_shards(tmp_path / "shards")
    experiment = small.decoder(tmp_path / "shards")
    complete = prepare_experiment(to_config_dict(experiment), num_devices=8)
    assert complete.model.vocabulary.text_size == tiny_models.text_tokenizer().size
    assert (complete.model.vocabulary.codebook_size, complete.model.code_dim, complete.model.max_scales) == (24, 8, 3)
    assert complete.with_input_sizes() == complete
    other = broken(experiment, model=dataclasses.replace(complete.model, code_dim=7, max_scales=2))
    with pytest.raises(UserError, match="config.model.code_dim = 7: the shards have 8; config.model.max_scales = 2"):
        other.with_input_sizes()
    roomy = broken(experiment, model=dataclasses.replace(complete.model, max_scales=9))
    assert roomy.with_input_sizes() == roomy


def test_several_directories_of_shards_are_one_input(tmp_path):
    for name in ("a", "b", "other"):
        small.write_shards(tmp_path / name)
    manifest = tmp_path / "other" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"vision_tokenizer": "', '"vision_tokenizer": "x'))
    one = prepare_experiment(to_config_dict(small.decoder(tmp_path / "a")), num_devices=8)
    both = small.decoder(f"{tmp_path / 'a'},{tmp_path / 'b'}")
    assert prepare_experiment(to_config_dict(both), num_devices=8).model == one.model
    foreign = small.decoder(f"{tmp_path / 'a'},{tmp_path / 'other'}")
    with pytest.raises(UserError, match="a and .*other do not belong together .vision tokenizer"):
        prepare_experiment(to_config_dict(foreign), num_devices=8)


def test_a_model_that_takes_one_half_of_the_codes_is_told_where_it_ends(tmp_path):
    small.write_shards(tmp_path / "shards")
    experiment = small.decoder(tmp_path / "shards")
    model = dataclasses.replace(experiment.model, code_halves="semantic")
    complete = prepare_experiment(to_config_dict(broken(experiment, model=model)), num_devices=8)
    assert complete.model.input_dims == slice(tiny_models.TOKENIZER_CONFIG.quantizer.semantic_dim)
    preflight(broken(experiment, model=model).with_placeholder_sizes())
    other = broken(experiment, model=dataclasses.replace(model, semantic_dim=4))
    with pytest.raises(UserError, match="config.model.semantic_dim = 4: the shards have 3"):
        other.with_input_sizes()


@pytest.mark.parametrize(("values", "message"), [({}, "kind is missing"), ({"kind": "decodr"}, "did you mean decoder")])
def test_kinds(values, message):
    with pytest.raises(UserError, match=message):
        build_experiment(values)

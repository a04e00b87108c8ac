"""The stages of tokenizer training: what each takes from the one before, what stays, a codebook that is held still."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from flax import traverse_util

from nextflow_jax.config import load_experiment, preflight, to_plain_dict
from nextflow_jax.errors import UserError
from nextflow_jax.training.checkpoint import Checkpoints, Position, restore_variables
from nextflow_jax.training.experiment import build_experiment
from nextflow_jax.training.state import abstract_variables
from nextflow_jax.training.tasks import make_task
from nextflow_jax.training.warm_start import InitFromConfig, load_warm_start
from nextflow_jax.vision.losses import TokenizerLossConfig
from tests import tiny_models
from tests.experiments import abstract
from tests.training import small

STAGES = str(abstract.ROOT / "experiments" / "nextflow" / "tokenizer.py")
NO_TEACHER = TokenizerLossConfig(distillation_cosine=0.0, distillation_l2=0.0)


def stage_of(name, workdir=""):
    """A stage's experiment of the recipe, small, on the drawn pictures: its own settings but for sizes."""
    config = load_experiment(f"{STAGES}:{name},small")
    given = build_experiment(config)
    quantizer = dataclasses.replace(
        tiny_models.TOKENIZER_CONFIG.quantizer, semantic_dim=given.model.quantizer.semantic_dim
    )
    model = dataclasses.replace(
        tiny_models.TOKENIZER_CONFIG,
        vit=small.VIT,
        quantizer=dataclasses.replace(quantizer, scale_drop=given.model.quantizer.scale_drop),
        pixel=dataclasses.replace(
            tiny_models.TOKENIZER_CONFIG.pixel, decoder_blocks=given.model.pixel.decoder_blocks, decoder_base=8
        ),
    )
    init_from = dataclasses.replace(given.init_from, workdir=str(workdir)) if workdir else given.init_from
    optimizer = dataclasses.replace(small.OPTIMIZER, freeze=given.optimizer.freeze)
    return dataclasses.replace(
        given, **{**small.common(steps=2), "optimizer": optimizer}, model=model, init_from=init_from, teacher=""
    )


def write_run(experiment, folder):
    """A checkpoint of an experiment, filled with numbers by NumPy: compiling and training takes far longer."""
    task = make_task(experiment)
    generator = np.random.default_rng(0)

    def fill(leaf):
        values = generator.standard_normal(leaf.shape)
        return (np.abs(values) if leaf.dtype == np.int32 else 0.1 * values).astype(leaf.dtype)

    state = jax.tree.map(fill, small.layout_of(task).abstract)
    with Checkpoints(folder, 1, to_plain_dict(experiment), task.describe()) as checkpoints:
        checkpoints.save(1, state, Position(1))
    return folder


@pytest.fixture(scope="module")
def pixel(tmp_path_factory):
    return write_run(stage_of("pixel"), tmp_path_factory.mktemp("pixel"))


@pytest.fixture(scope="module")
def joint(tmp_path_factory, pixel):
    plain = dataclasses.replace(stage_of("joint", pixel), loss=NO_TEACHER, init_from_teacher=False)
    return write_run(plain, tmp_path_factory.mktemp("joint"))


def test_joint_takes_the_whole_pixel_branch_and_the_codes_pixel_half(pixel):
    experiment = dataclasses.replace(stage_of("joint", pixel), loss=NO_TEACHER, init_from_teacher=False)
    start = load_warm_start(experiment.init_from, abstract_variables(make_task(experiment)))
    source = restore_variables(pixel)
    theirs = traverse_util.flatten_dict({"params": source.params, **source.variables}, sep="/")
    assert start.arrays.keys() == theirs.keys()
    width = theirs["codebook/quantizer/embedding"].shape[1]
    for name, array in theirs.items():
        taken = start.arrays[name]
        halved = name in ("codebook/quantizer/embedding", "codebook/quantizer/cluster_sum")
        np.testing.assert_array_equal(taken[:, -width:] if halved else taken, array)
        assert not halved or (taken.shape[1] == width + 8 and not taken[:, :8].any())


def test_the_decoder_stage_trains_the_pixel_decoder_and_nothing_else(joint, tmp_path):
    state = small.run(stage_of("decoder", joint), tmp_path)
    before, after = restore_variables(joint), state
    jax.tree.map(np.testing.assert_array_equal, before.variables["codebook"], after.variables["codebook"])
    for branch, arrays in after.params.items():
        if branch == "pixel_decoder":
            assert arrays.keys() > before.params[branch].keys()
            continue
        moved = any(
            (ours != theirs).any()
            for ours, theirs in zip(jax.tree.leaves(arrays), jax.tree.leaves(before.params[branch]))
        )
        assert moved == (branch == "pixel_expansion"), branch
    assert "codebook/revived" not in small.logged(tmp_path)[-1]


def test_a_codebook_is_not_frozen_at_random():
    experiment = dataclasses.replace(stage_of("decoder"), init_from=InitFromConfig())
    with pytest.raises(UserError, match="freeze_codebook = True: would freeze random codes"):
        preflight(experiment)


def published(stage):
    """(init_from, array name -> shape as text) of a stage at its published size."""
    experiment = build_experiment(load_experiment(f"{STAGES}:{stage}"))
    # The golden file has the shapes, and a test of its own; tracing this size takes seconds.
    rows = json.loads(abstract.GOLDEN.read_text())[f"experiments/nextflow/tokenizer.py:{stage}"]
    return experiment.init_from, {name: row.split()[0] for name, row in rows.items() if name}


@pytest.fixture(scope="module")
def published_joint():
    return published("joint")


def gaps(init_from, ours, theirs):
    """(our arrays that are not the source's, the source's that are not ours)."""
    needed = {name: shape for name, shape in ours.items() if not any(re.search(p, name) for p in init_from.fresh)}
    lacking = {name for name, shape in needed.items() if theirs.get(name) != shape}
    return lacking, {name for name in theirs if name not in ours}


def test_the_published_pixel_stage_fits_the_joint_one(published_joint):
    before, theirs = published("pixel")
    init_from, ours = published_joint
    assert not before.workdir and theirs["codebook/quantizer/embedding"] == "16384x8"
    halves = {"codebook/quantizer/embedding", "codebook/quantizer/cluster_sum"}
    assert gaps(init_from, ours, theirs) == (halves, set())
    assert all(ours[name] == "16384x40" and re.search(init_from.pixel_half[0], name) for name in halves)


def test_the_published_joint_stage_fits_the_decoder_one(published_joint):
    init_from, ours = published("decoder")
    assert gaps(init_from, ours, published_joint[1]) == (set(), set())
    kernel = "params/pixel_decoder/level_4_block_4/conv_1/kernel"
    assert ours[kernel] == "3x3x1024x1024" and kernel not in published_joint[1]

"""Weights from another run: exact copies, named gaps, one message for all misfits, the codebook's semantic half."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from flax import traverse_util

from nextflow_jax.config import to_plain_dict
from nextflow_jax.errors import UserError
from nextflow_jax.training.checkpoint import Checkpoints, Position, read_meta, restore_variables
from nextflow_jax.training.loop import train
from nextflow_jax.training.state import TrainState
from nextflow_jax.training.warm_start import InitFromConfig, load_warm_start
from tests.training.toy import ToyTask, toy_experiment

ONE = jax.devices()[:1]

SOURCE = {
    "params": {"pixel": {"kernel": np.full((2, 3), 7, np.float32)}, "gone": {"bias": np.ones(4, np.float32)}},
    "codebook": {"embedding": np.arange(8, dtype=np.float32).reshape(4, 2), "age": np.arange(4, dtype=np.int32)},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Folder of a run whose only checkpoint holds SOURCE."""
    folder = tmp_path_factory.mktemp("source")
    variables = {name: tree for name, tree in SOURCE.items() if name != "params"}
    state = TrainState(np.zeros((), np.int32), SOURCE["params"], variables, {}, {})
    with Checkpoints(folder, 1, to_plain_dict(toy_experiment()), {"data": "0123456789abcdef"}) as checkpoints:
        checkpoints.save(5, state, Position(5))
    return str(folder)


def wanted(**changes):
    """Our variables as shapes: a dual codebook, a semantic branch, no "gone"."""
    shapes = {
        "params/pixel/kernel": ((2, 3), np.float32),
        "params/semantic/kernel": ((3, 3), np.float32),
        "codebook/embedding": ((4, 5), np.float32),
        "codebook/age": ((4,), np.int32),
        **changes,
    }
    return traverse_util.unflatten_dict({name: jax.ShapeDtypeStruct(*kind) for name, kind in shapes.items()}, "/")


def config_of(source, **changes):
    gaps = {"fresh": ("^params/semantic/",), "drop": ("^params/gone/",), "pixel_half": ("embedding$",)}
    return InitFromConfig(source, **{**gaps, **changes})


def test_what_is_taken_what_stays_fresh_and_the_semantic_half(source):
    start = load_warm_start(config_of(source), wanted())
    assert start.origin == "toy 'toy', step 5 (data 0123456789ab)"
    fresh = jax.tree.map(lambda leaf: np.full(leaf.shape, -1, leaf.dtype), wanted())
    made = start.apply(fresh)
    assert jax.tree.structure(made) == jax.tree.structure(fresh)
    np.testing.assert_array_equal(made["params"]["pixel"]["kernel"], SOURCE["params"]["pixel"]["kernel"])
    np.testing.assert_array_equal(made["params"]["semantic"]["kernel"], -1)
    np.testing.assert_array_equal(made["codebook"]["age"], [0, 1, 2, 3])
    np.testing.assert_array_equal(made["codebook"]["embedding"][:, 3:], SOURCE["codebook"]["embedding"])
    np.testing.assert_array_equal(made["codebook"]["embedding"][:, :3], 0)


def test_grown_arrays_keep_what_is_new(source):
    ours = wanted(**{"codebook/embedding": ((6, 2), np.float32)})
    start = load_warm_start(config_of(source, pixel_half=(), grow=("codebook/embedding",)), ours)
    made = start.apply(jax.tree.map(lambda leaf: np.full(leaf.shape, -1, leaf.dtype), ours))["codebook"]["embedding"]
    np.testing.assert_array_equal(made[:4], SOURCE["codebook"]["embedding"])
    np.testing.assert_array_equal(made[4:], -1)
    smaller = wanted(**{"codebook/embedding": ((3, 2), np.float32)})
    with pytest.raises(UserError, match=r"codebook/embedding float32\(4, 2\), here float32\(3, 2\)"):
        load_warm_start(config_of(source, pixel_half=(), grow=("codebook/embedding",)), smaller)


def test_one_message_for_all_misfits(source):
    ours = wanted(**{"params/more/bias": ((1,), np.float32), "codebook/age": ((4,), np.float32)})
    ours["params"]["pixel"]["kernel"] = jax.ShapeDtypeStruct((3, 3), np.float32)
    with pytest.raises(UserError) as refused:
        load_warm_start(config_of(source, fresh=("^params/semantic/", "nowhere"), drop=(), pixel_half=()), ours)
    message = str(refused.value)
    assert "step 5: fresh 'nowhere' matches nothing" in message and "\n" not in message
    assert "1 missing there (fresh lets them start anew): params/more/bias" in message
    assert "3 of another shape or type" in message
    assert "params/pixel/kernel float32(2, 3), here float32(3, 3)" in message
    assert "codebook/embedding float32(4, 2), here float32(4, 5)" in message
    assert "codebook/age int32(4,), here float32(4,)" in message
    assert "1 not used here (drop leaves them out): params/gone/bias" in message


@pytest.mark.parametrize("shape", [(5, 5), (4, 1), (4, 5, 1)])
def test_a_half_that_does_not_fit_is_a_misfit(source, shape):
    with pytest.raises(UserError, match=r"codebook/embedding float32\(4, 2\), here"):
        load_warm_start(config_of(source), wanted(**{"codebook/embedding": (shape, np.float32)}))


def test_long_lists_are_cut(source):
    many = {f"params/new/{index}": ((1,), np.float32) for index in range(20)}
    with pytest.raises(UserError, match="20 missing there .*params/new/7 and 12 more"):
        load_warm_start(config_of(source), wanted(**many))


def test_faults_without_reading_arrays(source, tmp_path):
    assert not list(config_of(source).input_faults(("toy",))) and not list(InitFromConfig().input_faults(("toy",)))
    cases = [
        (config_of(str(tmp_path)), "has no checkpoint"),
        (config_of(source, step=3), "has checkpoints [5]"),
    ]
    for config, rule in cases:
        assert rule in str(*config.input_faults(("toy",)))
    assert "holds a run of kind 'toy'; give one of kind tokenizer" in str(
        *config_of(source).input_faults(("tokenizer",))
    )
    broken = InitFromConfig(step=-2, fresh=("(",), drop=("a",))
    assert [fault.field for fault in broken.faults()] == ["step", "fresh", "fresh", "drop"]
    (fault,) = InitFromConfig("gs://bucket/run").faults()
    assert fault.field == "workdir" and "is a URL, not a folder; mount the bucket" in str(fault)
    experiment = dataclasses.replace(toy_experiment(), init_from=config_of(str(tmp_path)))
    assert [fault.field for fault in experiment.input_faults()] == ["init_from.workdir"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train(toy_experiment(steps=4), ToyTask(), folder, ONE, io.StringIO())
    return folder


def test_a_run_starts_there_and_keeps_saying_so_without_the_source(trained, tmp_path):
    gone = tmp_path / "source"
    trained.rename(gone)
    settings = dataclasses.replace(
        toy_experiment(steps=1), init_from=InitFromConfig(str(gone), fresh=("^params/second",))
    )
    frozen = dataclasses.replace(settings.optimizer, freeze=("^first/",))
    settings = dataclasses.replace(settings, optimizer=frozen, seed=1)
    said = io.StringIO()
    (tmp_path / "run").mkdir()
    train(settings, ToyTask(), tmp_path / "run", ONE, said)
    assert "starting with 3 arrays of toy 'toy', step 4 (data toy)" in said.getvalue()
    before, after = restore_variables(gone), restore_variables(tmp_path / "run")
    # The source's moving average is what it is known by.
    jax.tree.map(np.testing.assert_array_equal, after.params["first"], before.params["first"])
    assert np.abs(after.params["second"]["kernel"] - before.params["second"]["kernel"]).max() > 0.1
    gone.rename(trained)
    train(dataclasses.replace(settings, train=toy_experiment(steps=2).train), ToyTask(), tmp_path / "run", ONE, said)
    assert read_meta(tmp_path / "run")["fingerprints"]["init_from"] == "toy 'toy', step 4 (data toy)"
    other = dataclasses.replace(settings, init_from=InitFromConfig())
    with pytest.raises(UserError, match="config.init_from.fresh was .* config.init_from.workdir was"):
        train(other, ToyTask(), tmp_path / "run", ONE, said)

"""Checkpoints restore exactly, on any mesh, and refuse what does not fit."""

import dataclasses

import jax
import numpy as np
import pytest

from nextflow_jax import sharding
from nextflow_jax.errors import UserError
from nextflow_jax.sharding import MeshConfig
from nextflow_jax.training.checkpoint import Checkpoints, Position, checkpoint_steps, read_meta, restore_variables
from nextflow_jax.training.optimizer import OptimizerConfig
from nextflow_jax.training.state import init_state, make_layout
from tests.training.toy import ToyTask

WITH_EMA = OptimizerConfig(ema_decay=0.9, freeze=("^second/bias$",))


def layout_on(mesh_config, devices, optimizer=WITH_EMA):
    mesh = sharding.make_mesh(mesh_config, devices)
    return make_layout(ToyTask(), optimizer, 10, mesh, sharding.make_rules())


def open_checkpoints(workdir, keep=2):
    return Checkpoints(workdir, keep, {"kind": "toy", "model": {"width": 8}}, {"data": "toy"})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run's folder with checkpoints 1, 2, 3 (two of which stay), saved on 2x2x2 devices, and the state."""
    workdir = tmp_path_factory.mktemp("saved")
    layout = layout_on(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices())
    state = init_state(ToyTask(), layout, seed=3)
    state = state.replace(ema=jax.tree.map(lambda x: x + 1, state.ema))
    with open_checkpoints(workdir) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state, Position(step, {"loss": [0.1 * step, 1.0]}))
    return workdir, state


@pytest.mark.parametrize("num_devices", [8, 1])
def test_restores_onto_any_mesh(saved, num_devices):
    workdir, state = saved
    layout = layout_on(MeshConfig(), jax.devices()[:num_devices])
    with open_checkpoints(workdir) as checkpoints:
        restored, position = checkpoints.restore(3, layout.abstract)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert position == Position(3, {"loss": [0.1 * 3, 1.0]})
    assert restored.params["first"]["kernel"].sharding == layout.shardings.params["first"]["kernel"]


def test_old_checkpoints_go(saved):
    assert checkpoint_steps(saved[0]) == [2, 3]


def test_absent_step_lists_those_there_are(saved):
    with pytest.raises(UserError, match="no checkpoint of step 1; there are: 2, 3"):
        restore_variables(saved[0], 1)


def test_folder_without_checkpoints(tmp_path):
    assert checkpoint_steps(tmp_path) == []
    with pytest.raises(UserError, match="has no checkpoints; train there first"):
        restore_variables(tmp_path)


def test_weights_come_to_the_host_with_the_moving_average(saved):
    workdir, state = saved
    restored = restore_variables(workdir, 2)
    assert restored.meta["step"] == 2 and restored.config == {"kind": "toy", "model": {"width": 8}}
    assert isinstance(restored.params["first"]["kernel"], np.ndarray)
    np.testing.assert_array_equal(restored.params["first"]["kernel"], state.ema["first"]["kernel"])
    np.testing.assert_array_equal(restored.params["second"]["bias"], state.params["second"]["bias"])
    np.testing.assert_array_equal(restored.variables["running"]["mean"], state.variables["running"]["mean"])


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (OptimizerConfig(ema_decay=0.0, freeze=WITH_EMA.freeze), "ema/first/bias is in the checkpoint and not part"),
        (dataclasses.replace(WITH_EMA, freeze=()), "ema/second/bias is needed by this configuration and missing"),
    ],
)
def test_missing_and_unexpected_arrays_are_named(saved, optimizer, message):
    layout = layout_on(MeshConfig(), jax.devices()[:1], optimizer)
    with open_checkpoints(saved[0]) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore(3, layout.abstract)


def test_mis_shaped_array_is_named(saved):
    abstract = layout_on(MeshConfig(), jax.devices()[:1]).abstract
    params = dict(abstract.params, first=dict(abstract.params["first"], bias=jax.ShapeDtypeStruct((9,), np.float32)))
    message = r"params/first/bias is float32\(8,\) in the checkpoint and float32\(9,\) here"
    with open_checkpoints(saved[0]) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore(3, abstract.replace(params=params))


def test_meta_of_another_format(saved, monkeypatch):
    assert read_meta(saved[0])["fingerprints"] == {"data": "toy"}
    monkeypatch.setattr("nextflow_jax.training.checkpoint.FORMAT_VERSION", 2)
    with pytest.raises(UserError, match="format 1, this version reads 2"):
        read_meta(saved[0])


def test_an_unfinished_checkpoint_does_not_count(saved, tmp_path):
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp-1").mkdir(parents=True)
    assert checkpoint_steps(tmp_path) == []

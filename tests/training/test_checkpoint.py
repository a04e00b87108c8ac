"""Checkpoints restore exactly, on any mesh, and refuse what does not fit."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax import sharding
from nextflow_jax.errors import UserError
from nextflow_jax.sharding import MeshConfig
from nextflow_jax.training.checkpoint import Checkpoints, Position, checkpoint_steps, read_meta, restore_variables
from nextflow_jax.training.optimizer import OptimizerConfig
from nextflow_jax.training.spikes import SpikeConfig
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


def test_down_to_one_device_and_back_up(saved, tmp_path):
    """Elastic: each number of devices restores what the one before saved, with the parameters split otherwise."""
    workdir, state = saved
    meshes = {
        4: MeshConfig(fsdp=4),
        2: MeshConfig(tensor=2),
        1: MeshConfig(),
        8: MeshConfig(data=2, fsdp=2, tensor=2),
    }
    for number, (num_devices, mesh) in enumerate(meshes.items()):
        layout = layout_on(mesh, jax.devices()[:num_devices])
        with open_checkpoints(workdir) as checkpoints:
            restored, position = checkpoints.restore(3, layout.abstract)
        workdir = tmp_path / str(number)
        with open_checkpoints(workdir) as checkpoints:
            checkpoints.save(3, restored, position)
        jax.tree.map(np.testing.assert_array_equal, restored, state)
        assert jax.tree.map(lambda leaf: leaf.sharding, restored) == layout.shardings


def test_other_floating_dtypes_are_converted(saved):
    abstract = layout_on(MeshConfig(data=4, tensor=2), jax.devices()).abstract
    half = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=leaf.sharding), abstract.params
    )
    with open_checkpoints(saved[0]) as checkpoints:
        restored, _ = checkpoints.restore(3, abstract.replace(params=half))
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), saved[1].params)
    jax.tree.map(np.testing.assert_array_equal, restored.params, expected)
    assert restored.opt_state is not None and restored.params["first"]["kernel"].dtype == jnp.bfloat16


def test_a_rule_for_spikes_may_come_and_go(saved, tmp_path):
    """The running means start anew in a run that had none, and are dropped by one that wants none."""
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    rule = make_layout(ToyTask(), WITH_EMA, 10, mesh, sharding.make_rules(), SpikeConfig(grad_norm=5.0))
    with open_checkpoints(saved[0]) as checkpoints:
        restored, position = checkpoints.restore(3, rule.abstract)
    assert {name: float(value) for name, value in restored.recent.items()} == {"grad_norm": 0, "loss": 0, "steps": 0}
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, restored, position)
    with open_checkpoints(tmp_path) as checkpoints:
        without, _ = checkpoints.restore(3, layout_on(MeshConfig(), jax.devices()[:1]).abstract)
        jax.tree.map(np.testing.assert_array_equal, without, saved[1])


def test_a_damaged_file_is_named(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "run")
    file = max((tmp_path / "run" / "checkpoints" / "3").rglob("d/*"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"3 is damaged: {file} has"):
        restore_variables(tmp_path / "run")
    assert restore_variables(tmp_path / "run", 2).meta["step"] == 2


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

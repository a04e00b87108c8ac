"""The step is the same function on any mesh, and a step that is not finite changes nothing."""

import dataclasses

import jax
import numpy as np
import pytest

from nextflow_jax import sharding
from nextflow_jax.sharding import MeshConfig
from nextflow_jax.sharding_table import placed_arrays
from nextflow_jax.training.state import init_state, make_layout
from nextflow_jax.training.step import compile_step
from tests.training.toy import ToyTask, toy_experiment


def build(task, mesh_config, devices, optimizer, rules=None):
    mesh, rules = sharding.make_mesh(mesh_config, devices), rules or sharding.make_rules()
    layout = make_layout(task, optimizer, 10, mesh, rules)
    return layout, compile_step(task, layout, 0, *task.batch_specs())


OPTIMIZER = toy_experiment().optimizer


def run(task, mesh_config, devices, steps, optimizer=OPTIMIZER, rules=None):
    layout, compiled = build(task, mesh_config, devices, optimizer, rules)
    rows = sharding.batch_sharding(layout.mesh, layout.rules)
    constants = jax.device_put(task.constants(), sharding.replicated(layout.mesh))
    state, metrics = init_state(task, layout, seed=0), None
    for _, batch in zip(range(steps), task.batches(0, 0, 1)):
        state, metrics = compiled.call(state, constants, jax.device_put(batch, rows))
    return state, metrics.fetch() if metrics else {}


@pytest.fixture(scope="module")
def single():
    return run(ToyTask(), MeshConfig(), jax.devices()[:1], 3)


def test_eight_devices_equal_one(single):
    state, metrics = run(ToyTask(), MeshConfig(data=2, fsdp=2, tensor=2), jax.devices(), 3)
    assert not state.params["first"]["kernel"].sharding.is_fully_replicated
    assert not state.opt_state[1].mu["first"]["kernel"].sharding.is_fully_replicated
    assert not state.ema["first"]["kernel"].sharding.is_fully_replicated
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), single, (state, metrics))


SPLIT = (("mlp", ("data",)),)
"""Of the toy's parameters all but the last bias have the axis mlp, of size 8."""


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer_rules": SPLIT},
        {"optimizer_rules": SPLIT, "gradient_rules": SPLIT},
        {"rules": (("mlp", ("data",)),)},
    ],
    ids=["stage 1", "stage 2", "stage 3"],
)
def test_zero_stages_equal_one_device(single, changes):
    """Moments, gradients and parameters split over eight devices, one after another: the same numbers everywhere."""
    rules = dataclasses.replace(toy_experiment(), **changes).state_rules()
    task, mesh = ToyTask(), MeshConfig(data=8)
    state, metrics = run(task, mesh, jax.devices(), 3, rules=rules)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), single, (state, metrics))
    assert state.params["first"]["kernel"].sharding.is_fully_replicated == ("rules" not in changes)
    layout, compiled = build(task, mesh, jax.devices(), OPTIMIZER, rules)
    rows = placed_arrays(layout.abstract, layout.axes, layout.shardings)
    kept = [row for row in rows if ".mu" in row.name or ".nu" in row.name or "ema" in row.name]
    assert {row.axes for row in kept} == {("embed", "mlp"), ("mlp",), ("mlp", None), (None,)}
    assert all(row.num_bytes == 8 * row.local_bytes for row in kept if "mlp" in row.axes)
    if "rules" not in changes:
        text = compiled.call.as_text()
        assert "all-gather" in text, "updated parts of the parameters come together again"


def test_steps_count_and_metrics_are_pairs(single):
    state, metrics = single
    assert int(state.step) == 3
    assert metrics["loss"][0] == pytest.approx(metrics["squares"][0] / metrics["squares"][1], rel=1e-6)
    assert metrics["bad_steps"] == (0.0, 1.0)
    assert np.any(np.asarray(state.variables["running"]["mean"]))


def test_a_step_that_is_not_finite_changes_only_the_count():
    task = ToyTask(poison=1)
    before, _ = run(task, MeshConfig(), jax.devices()[:1], 1)
    after, metrics = run(task, MeshConfig(), jax.devices()[:1], 2)
    assert (int(before.step), int(after.step)) == (1, 2)
    jax.tree.map(np.testing.assert_array_equal, before.replace(step=after.step), after)
    assert metrics["bad_steps"] == (1.0, 1.0) and metrics["loss"] == (0.0, 0.0)


def test_frozen_parameters_stay_and_the_rest_moves():
    optimizer = dataclasses.replace(toy_experiment().optimizer, freeze=("^first/",))
    start, _ = run(ToyTask(), MeshConfig(), jax.devices()[:1], 0, optimizer)
    end, _ = run(ToyTask(), MeshConfig(), jax.devices()[:1], 2, optimizer)
    jax.tree.map(np.testing.assert_array_equal, start.params["first"], end.params["first"])
    assert np.any(np.asarray(start.params["second"]["kernel"]) != np.asarray(end.params["second"]["kernel"]))
    assert set(end.ema) == {"second"}


def test_compiled_step_reports_memory_and_flops():
    _, compiled = build(ToyTask(), MeshConfig(), jax.devices()[:1], OPTIMIZER)
    assert compiled.flops > 0
    assert compiled.memory["aliased"] > 0

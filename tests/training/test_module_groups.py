import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from nextflow_jax.training.module_groups import GROUPS, depths, group_of, norms
from nextflow_jax.training.state import init_state
from nextflow_jax.training.step import make_train_step
from tests.training.small import layout_of
from tests.training.toy import ToyTask

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "shardings.json"


def test_every_parameter_of_every_experiment_has_a_group_and_every_group_has_some():
    tables = json.loads(GOLDEN.read_text()).values()
    names = {name.removeprefix("params/") for table in tables for name in table if name.startswith("params/")}
    groups = {name: group_of(name) for name in names}
    assert {name for name, group in groups.items() if group == "other"} == {"bias", "log_temperature"}
    assert set(groups.values()) == {group for group, _ in GROUPS}
    assert groups["layers/attention/query_norm/scale"] == groups["final_norm/scale"] == "norms"
    assert groups["embedding/connector/out/kernel"] == "connector" and groups["embedding/tokens"] == "embedding"


@pytest.mark.parametrize(("layers", "sizes"), [(1, [1]), (3, [1, 1, 1]), (6, [2, 1, 1, 2]), (28, [7, 7, 7, 7])])
def test_depths_are_all_layers_in_order(layers, sizes):
    parts = [list(range(layers))[where] for where in depths(layers).values()]
    assert sum(parts, []) == list(range(layers)) and [len(part) for part in parts] == sizes


def test_norms_are_those_of_the_parts():
    rng = np.random.default_rng(0)
    flat = {
        "layers/attention/out/kernel": rng.normal(size=(6, 3, 4)),
        "layers/mlp/up/kernel": rng.normal(size=(6, 5)),
        "layers/mlp_norm/scale": rng.normal(size=(6, 3)),
        "embedding/tokens": rng.normal(size=(7, 3)),
    }
    flat = {name: leaf.astype(np.float32) for name, leaf in flat.items()}
    measured = {name: float(pair[0]) for name, pair in norms("n", traverse_util.unflatten_dict(flat, "/")).items()}
    stacked = [leaf for name, leaf in flat.items() if name.startswith("layers/")]
    expected = {"n": list(flat.values()), "n/mlp": [flat["layers/mlp/up/kernel"]]}
    expected |= {"n/layers_1": [leaf[:2] for leaf in stacked], "n/layers_3": [leaf[3:4] for leaf in stacked]}
    for name, leaves in expected.items():
        assert measured[name] == pytest.approx(float(optax.tree.norm(leaves)), rel=1e-6), name
    assert set(measured) == {"n", *(f"n/{k}" for k in ("mlp", "attention", "norms", "embedding", *depths(6)))}


def test_measuring_changes_nothing_and_happens_when_due():
    task = ToyTask()
    layout = layout_of(task)
    batches = [batch for _, batch in zip(range(4), task.batches(0, 0, 1))]
    steps = {every: jax.jit(make_train_step(task, layout.optimizer, 0, norms_every=every)) for every in (0, 2)}
    states = dict.fromkeys(steps, init_state(task, layout, 0))
    for index, batch in enumerate(batches):
        before = states[2].params
        (states[0], plain), (states[2], measured) = (
            steps[every](states[every], task.constants(), batch) for every in steps
        )
        jax.tree.map(np.testing.assert_array_equal, states[0], states[2])
        due = float(index % 2)
        weights = {name: float(pair[1]) for name, pair in measured.items()}
        assert weights["update_norm"] == weights["grad_norm/other"] == due and weights["grad_norm"] == 1
        assert "update_norm" not in plain
        if due:
            change = jax.tree.map(jnp.subtract, states[2].params, before)
            assert float(measured["update_norm"][0]) == pytest.approx(float(optax.tree.norm(change)), rel=1e-5)
            assert float(measured["grad_norm/other"][0]) == pytest.approx(float(measured["grad_norm"][0]), rel=1e-5)
            assert float(measured["param_norm"][0]) == pytest.approx(float(optax.tree.norm(before)), rel=1e-5)

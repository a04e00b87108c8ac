"""A batch in parts gives the step of the whole batch, on any mesh, and rows stay on their devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax import sharding
from nextflow_jax.config import preflight
from nextflow_jax.errors import UserError
from nextflow_jax.sharding import MeshConfig
from nextflow_jax.training.state import init_state, make_layout
from nextflow_jax.training.step import compile_step
from tests.training import small
from tests.training.toy import ToyTask, toy_experiment

OPTIMIZER = toy_experiment().optimizer
ROWS = 32


class StatelessTask(ToyTask):
    """The toy without a running mean and without noise; positions have weights, as the decoder's have."""

    def __init__(self, weighted=True):
        super().__init__(batch_size=ROWS, noise=0.0)
        self.weighted = weighted

    def loss(self, params, variables, constants, batch, key, step):
        hidden = jax.nn.gelu(batch["x"] @ params["first"]["kernel"] + params["first"]["bias"])
        y = hidden @ params["second"]["kernel"] + params["second"]["bias"]
        weights = self._weights(batch)
        total = jnp.sum(weights[:, None] * jnp.square(y - batch["y"]))
        weight = jnp.sum(weights)
        return total / weight, ({"squares": (total, weight)}, variables)

    def loss_weight(self, batch):
        return jnp.sum(self._weights(batch))

    def _weights(self, batch):
        return jnp.abs(batch["x"][:, 0]) if self.weighted else jnp.ones(batch["x"].shape[0])


def train(task, parts, mesh_config=MeshConfig(), devices=1, steps=5):  # noqa: B008  (frozen)
    mesh = sharding.make_mesh(mesh_config, jax.devices()[:devices])
    layout = make_layout(task, OPTIMIZER, 10, mesh, sharding.make_rules())
    step = compile_step(task, layout, 0, *task.batch_specs(), accumulate=parts)
    constants = jax.device_put(task.constants(), sharding.replicated(mesh))
    state, metrics = init_state(task, layout, seed=0), None
    for _, batch in zip(range(steps), task.batches(0, 0, 1)):
        rows = jax.device_put(batch, sharding.batch_sharding(mesh, layout.rules))
        state, metrics = step.call(state, constants, rows)
    return (jax.device_get(state), metrics.fetch() if metrics else {}), step


@functools.cache
def whole(weighted):
    return train(StatelessTask(weighted), 1)[0]


def check(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.max(np.abs(a - b)) <= 1e-6 * max(1e-3, np.max(np.abs(b)))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("parts", [2, 8])
def test_parts_give_the_update_and_metrics_of_the_whole(parts, weighted):
    (state, metrics), _ = train(StatelessTask(weighted), parts)
    expected_state, expected_metrics = whole(weighted)
    check(state, expected_state)
    means = {name: pair[0] / pair[1] for name, pair in metrics.items()}
    for name, pair in expected_metrics.items():
        assert means[name] == pytest.approx(pair[0] / pair[1], rel=1e-5), name


@pytest.mark.parametrize("mesh", [MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(slice=2, data=2, fsdp=2)])
def test_eight_devices_in_parts_equal_one_at_once(mesh):
    (state, _), step = train(StatelessTask(), 4, mesh, 8)
    check(state, whole(True)[0])
    # Rows stay where they are: what moves is parameters and gradients.
    text = step.call.as_text()
    assert not re.search(r"all-to-all|collective-permute", text)
    assert not re.search(rf"\[[\d,]*{ROWS // 4},[24]\]\S* all-gather", text)
    assert re.search(r" while\(", text)


def test_a_part_needs_less_memory():
    task = StatelessTask()
    task.batch_size = 4096
    temporaries = [train(task, parts, steps=0)[1].memory["temporaries"] for parts in (1, 8)]
    assert temporaries[1] < temporaries[0] / 2


def test_losses_that_change_state_refuse():
    with pytest.raises(UserError, match="accumulate = 2: this loss changes running/mean with every batch"):
        train(ToyTask(), 2)


def test_a_part_that_is_not_finite_changes_nothing():
    task = StatelessTask()
    task.poison = 0
    state, metrics = train(task, 4, steps=1)[0]
    assert metrics["bad_steps"] == (1.0, 1.0)
    start = train(StatelessTask(), 4, steps=0)[0][0]
    jax.tree.map(np.testing.assert_array_equal, start.replace(step=state.step), state)


def test_batches_that_do_not_divide_are_refused():
    experiment = toy_experiment(batch_size=24, accumulate=2)
    (fault,) = experiment.device_faults(8)
    assert str(fault) == (
        "train.batch_size = 24: must be a multiple of slice x data x fsdp x train.accumulate = 8 x 2 = 16; use 16 or 32"
    )
    assert not list(toy_experiment(batch_size=32, accumulate=2).device_faults(8))


def test_kinds_that_need_the_whole_batch_say_so():
    with pytest.raises(UserError, match="train.accumulate = 2: the contrastive loss compares every picture"):
        preflight(small.contrastive(accumulate=2))
    with pytest.raises(UserError, match="train.accumulate = 2: the codebook's statistics"):
        preflight(small.tokenizer("x", accumulate=2))
    with pytest.raises(UserError, match="train.accumulate = 0: must be positive"):
        preflight(small.contrastive(accumulate=0))

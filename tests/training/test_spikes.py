"""Which steps are spikes, and what the running means become; in the step, a spike changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax import sharding
from nextflow_jax.config import preflight
from nextflow_jax.errors import UserError
from nextflow_jax.training.optimizer import OptimizerConfig
from nextflow_jax.training.spikes import SpikeConfig, is_spike, nothing_seen, with_step
from nextflow_jax.training.state import init_state, make_layout
from nextflow_jax.training.step import make_train_step
from tests.training.toy import ToyTask


def after(config, figures):
    recent = nothing_seen(config)
    for loss, norm in figures:
        recent = with_step(config, recent, jnp.float32(loss), jnp.float32(norm))
    return recent


def test_the_means_are_plain_at_first_and_exponential_later():
    config = SpikeConfig(grad_norm=2.0, window=4)
    recent = after(config, [(1, 2), (3, 4), (5, 6), (7, 8)])
    assert float(recent["loss"]) == 4 and float(recent["grad_norm"]) == 5
    recent = with_step(config, recent, jnp.float32(8), jnp.float32(5))
    assert float(recent["loss"]) == 5 and float(recent["steps"]) == 4


@pytest.mark.parametrize(
    ("config", "loss", "norm", "expected"),
    [
        (SpikeConfig(grad_norm=3.0, window=2), 9.0, 5.9, False),
        (SpikeConfig(grad_norm=3.0, window=2), 1.0, 6.1, True),
        (SpikeConfig(loss=3.0, window=2), 3.1, 99.0, True),
        (SpikeConfig(loss=3.0, window=3), 99.0, 99.0, False),
        (SpikeConfig(loss=3.0, window=2), np.nan, 1.0, False),
        (SpikeConfig(), 99.0, 99.0, False),
    ],
)
def test_what_is_a_spike(config, loss, norm, expected):
    recent = after(config, [(1, 2), (1, 2)])
    assert bool(is_spike(config, recent, jnp.float32(loss), jnp.float32(norm))) is expected


def test_a_spike_changes_nothing_but_the_step_count():
    class Leaping(ToyTask):
        def batches(self, start, part, num_parts):
            for index, batch in enumerate(super().batches(start, part, num_parts), start):
                yield {**batch, "y": batch["y"] * (1e4 if index == 6 else 1)}

    task, spikes = Leaping(), SpikeConfig(grad_norm=20.0, window=4)
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    optimizer = OptimizerConfig(ema_decay=0.9)
    layout = make_layout(task, optimizer, 10, mesh, sharding.make_rules(), spikes)
    state, step = init_state(task, layout, 0), jax.jit(make_train_step(task, layout.optimizer, 0, spikes=spikes))
    batches = task.batches(0, 0, 1)
    for number in range(8):
        before, (state, metrics) = state, step(state, task.constants(), next(batches))
        assert [float(metrics[name][0]) for name in ("spikes", "bad_steps")] == [number == 6] * 2
        if number == 6:
            jax.tree.map(np.testing.assert_array_equal, state.replace(step=before.step), before)
    assert int(state.step) == 8


def test_a_factor_that_calls_everything_a_spike_is_refused():
    with pytest.raises(UserError, match="config.grad_norm = 0.5: would call every other step a spike"):
        preflight(SpikeConfig(grad_norm=0.5))

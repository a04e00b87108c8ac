"""The decoder's step in parts is the step of the whole batch, whatever the parts weigh."""

import jax
import numpy as np
import pytest

from nextflow_jax.training.state import init_state
from nextflow_jax.training.step import make_train_step
from nextflow_jax.training.tasks import make_task
from tests.training import small


def step(task, layout, state, batch, parts):
    return jax.device_get(jax.jit(make_train_step(task, layout.optimizer, 0, parts))(state, {}, batch))


def test_parts_give_the_update_and_metrics_of_the_whole(shards):
    task = make_task(small.decoder(shards, batch_size=8).with_input_sizes())
    layout = small.layout_of(task)
    state, batch = init_state(task, layout, seed=0), next(task.batches(0, 0, 1))
    batch["loss_weights"] = batch["loss_weights"].copy()
    # Two rows, a part of their own, without anything to learn.
    batch["loss_weights"][2:4] = 0.0
    (expected, expected_metrics), (got, metrics) = (step(task, layout, state, batch, parts) for parts in (1, 4))
    moments, expected_moments = got.opt_state[1].mu, expected.opt_state[1].mu
    for a, b in zip(jax.tree.leaves(moments), jax.tree.leaves(expected_moments), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * np.max(np.abs(b)))
    assert set(metrics) == set(expected_metrics)
    for name, (total, weight) in expected_metrics.items():
        # Outliers are of no mean: those of the parts are averaged.
        if weight and not name.startswith("residual/"):
            assert metrics[name][0] / metrics[name][1] == pytest.approx(total / weight, rel=1e-5, abs=1e-7), name

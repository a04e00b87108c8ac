import time

import jax
import numpy as np
import pytest

from nextflow_jax import sharding
from nextflow_jax.training.feed import Feed
from nextflow_jax.training.loop import train
from nextflow_jax.training.metrics import read_metrics
from tests.training.toy import ToyTask, toy_experiment

ROWS = sharding.batch_sharding(sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1]), sharding.make_rules())


class Slow(ToyTask):
    """Every batch takes a while, after the first few."""

    def batches(self, start, part, num_parts):
        for batch in super().batches(start, part, num_parts):
            time.sleep(0.05)
            yield batch


def test_a_feed_that_keeps_up_lies_ready_and_never_waits():
    with Feed(ToyTask(), 0, ROWS, depth=3) as feed:
        for _ in range(4):
            time.sleep(0.2)
            feed.next_batch()
    assert feed.totals.batches == 4 and feed.totals.ready == 12 and feed.totals.waited < 0.1


def test_a_slow_feed_counts_the_seconds_of_waiting():
    with Feed(Slow(), 0, ROWS, depth=3) as feed:
        for _ in range(4):
            feed.next_batch()
    assert feed.totals.batches == 4 and feed.totals.ready <= 1 and feed.totals.waited > 0.15


def test_batches_are_the_tasks_in_order():
    with Feed(ToyTask(), 5, ROWS, depth=2) as feed:
        for _, expected in zip(range(4), ToyTask().batches(5, 0, 1)):
            batch = feed.next_batch()
            assert {name: array.dtype for name, array in batch.items()} == {k: v.dtype for k, v in expected.items()}
            for name, array in batch.items():
                np.testing.assert_array_equal(array, expected[name])


def test_errors_of_the_task_reach_the_loop():
    class Broken(ToyTask):
        def batches(self, start, part, num_parts):
            yield next(super().batches(start, part, num_parts))
            raise OSError("the disk is gone")

    with Feed(Broken(), 0, ROWS, depth=2) as feed:
        feed.next_batch()
        with pytest.raises(OSError, match="the disk is gone"):
            feed.next_batch()


def test_metrics_say_how_long_steps_waited_for_data(tmp_path):
    train(toy_experiment(steps=8, log_every=4), Slow(), tmp_path, jax.devices()[:1])
    for record in read_metrics(tmp_path):
        seconds = 4 * record["step_ms"] / 1000
        assert record["data_wait"] == pytest.approx(record["data_wait_s"] / seconds)
        assert record["batches_ready"] < 1
    assert read_metrics(tmp_path)[-1]["data_wait_s"] > 0.1 and read_metrics(tmp_path)[-1]["data_wait"] > 0.5


def test_waiting_while_the_devices_work_costs_nothing():
    with Feed(Slow(), 0, ROWS, depth=1) as feed:
        for _ in range(4):
            feed.next_batch(busy=lambda: True)
        assert feed.totals.waited == 0
        idle_after = time.perf_counter() + 0.03
        feed.next_batch(busy=lambda: time.perf_counter() < idle_after)
    assert 0 < feed.totals.waited < 0.05

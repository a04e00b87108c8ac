"""Runs: resumed equals uninterrupted bit for bit; signals, losses that are not finite, changed configurations."""

import dataclasses
import io
import os
import signal
import time

import jax
import numpy as np
import pytest

from nextflow_jax.config import to_plain_dict
from nextflow_jax.errors import UserError
from nextflow_jax.training.checkpoint import checkpoint_steps, restore_variables
from nextflow_jax.training.goodput import account, read_entries
from nextflow_jax.training.loop import train
from nextflow_jax.training.metric_table import is_timed
from nextflow_jax.training.metrics import read_metrics
from tests.training.toy import ToyTask, toy_experiment
from tests.training.toy_processes import ToyJob

TIMINGS = {"time", "tokens_per_s", "examples_per_s", "step_ms", "data_wait", "data_wait_s", "batches_ready", "mfu"}
ONE = jax.devices()[:1]


def values(workdir):
    return [{k: v for k, v in record.items() if not is_timed(k)} for record in read_metrics(workdir)]


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


class Stopping(ToyTask):
    """Sends this process a signal while it makes a batch."""

    number = signal.SIGTERM

    def batches(self, start, part, num_parts):
        for index, batch in enumerate(super().batches(start, part, num_parts)):
            if index == 5:
                os.kill(os.getpid(), self.number)
                time.sleep(0.05)
            yield batch


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    settings = toy_experiment(steps=24, tensorboard=True, peak_flops=1e12)
    stream = io.StringIO()
    state = train(settings, ToyTask(), workdir, ONE, stream)
    return workdir, jax.device_get(state), stream.getvalue()


def test_a_run_leaves_its_artifacts(uninterrupted):
    workdir, _, said = uninterrupted
    names = {path.name for path in workdir.iterdir()}
    files = {"config.json", "metrics.jsonl", "goodput.jsonl", "sharding.txt", "artifact.txt", "lock"}
    assert names == files | {"tensorboard", "checkpoints"}
    records = read_metrics(workdir)
    assert [record["step"] for record in records] == [4, 8, 12, 16, 20, 24]
    assert TIMINGS | {"loss", "squares", "grad_norm", "learning_rate", "goodput"} <= records[0].keys()
    assert [(record["data/first"], record["data/batches"]) for record in records] == [(n, 4) for n in range(0, 24, 4)]
    assert records[-1]["loss"] < records[0]["loss"]
    assert "58 parameters" in said and "compiled in" in said and "done: step 24 of 24 saved" in said
    entries = read_entries(workdir)
    total = account(entries)
    assert total.wall == pytest.approx(entries[-1].end - entries[0].begin, abs=1e-3) and entries[-1].last == 24
    assert all(total.seconds[name] > 0 for name in ("init", "compile", "step", "data_wait", "checkpoint"))
    assert 0 < records[0]["goodput"] < 1 and "goodput" in said.splitlines()[-1]


def test_stopped_and_resumed_equals_uninterrupted(uninterrupted, tmp_path):
    settings, stream = toy_experiment(steps=24), io.StringIO()
    train(settings, Stopping(seconds=0.01), tmp_path, ONE, stream)
    (stopped,) = checkpoint_steps(tmp_path)
    assert 0 < stopped < 24
    assert f"stopped by SIGTERM after step {stopped}; saved" in stream.getvalue()
    state = train(settings, ToyTask(), tmp_path, ONE, io.StringIO())
    assert_same(jax.device_get(state), uninterrupted[1])
    assert values(tmp_path) == values(uninterrupted[0])


def test_ctrl_c_saves_and_interrupts(tmp_path):
    class Interrupted(Stopping):
        number = signal.SIGINT

    with pytest.raises(KeyboardInterrupt):
        train(toy_experiment(steps=24), Interrupted(seconds=0.01), tmp_path, ONE, io.StringIO())
    assert checkpoint_steps(tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path):
    settings = toy_experiment(steps=12, checkpoint_every=4)
    with pytest.raises(UserError, match=r"not finite at step 7 \(1 in a row\)"):
        train(settings, ToyTask(poison=6), tmp_path, ONE, io.StringIO())
    assert checkpoint_steps(tmp_path) == [4]
    longer_and_tolerant = toy_experiment(steps=14, checkpoint_every=4, max_bad_steps=1)
    state = train(longer_and_tolerant, ToyTask(poison=6), tmp_path, ONE, io.StringIO())
    assert int(state.step) == 14 and np.isfinite(restore_variables(tmp_path).params["first"]["kernel"]).all()


@pytest.fixture
def finished(uninterrupted):
    return uninterrupted[0]


@pytest.mark.parametrize(
    ("change", "task", "message"),
    [
        ({"seed": 1}, ToyTask(), "config.seed was 0 and is 1"),
        ({}, ToyTask(fingerprint="other"), "fingerprint.data was 'toy' and is 'other'"),
    ],
)
def test_resuming_refuses_what_changes_the_meaning(finished, change, task, message):
    settings = dataclasses.replace(toy_experiment(steps=30), **change)
    with pytest.raises(UserError, match=message):
        train(settings, task, finished, ONE, io.StringIO())


def test_a_misfit_is_found_before_compiling_and_what_changed_is_said(finished, monkeypatch):
    monkeypatch.delattr("nextflow_jax.training.loop.build_program")
    settings, stream = toy_experiment(steps=30), io.StringIO()
    settings = dataclasses.replace(settings, optimizer=dataclasses.replace(settings.optimizer, ema_decay=0.0))
    with pytest.raises(UserError, match="checkpoints/24: ema/first/bias is in the checkpoint and not part"):
        train(settings, ToyTask(), finished, ONE, stream)
    assert "since step 24, config.optimizer.ema_decay was 0.9 and is 0.0\n" in stream.getvalue()
    assert "since step 24, config.train.steps was 24 and is 30\n" in stream.getvalue()


def test_errors_of_the_data_end_the_run(tmp_path):
    class Broken(ToyTask):
        def batches(self, start, part, num_parts):
            yield next(super().batches(start, part, num_parts))
            raise UserError("the shard is damaged")

    with pytest.raises(UserError, match="the shard is damaged"):
        train(toy_experiment(steps=4), Broken(), tmp_path, ONE, io.StringIO())


def test_batches_are_checked_against_the_spec(tmp_path):
    class Misshaped(ToyTask):
        def batches(self, start, part, num_parts):
            for batch in super().batches(start, part, num_parts):
                yield {**batch, "y": batch["y"].astype(np.float64)}

    with pytest.raises(ValueError, match="batch 'y' is float64"):
        train(toy_experiment(steps=4), Misshaped(), tmp_path, ONE, io.StringIO())


def test_killed_in_the_middle_and_run_again_equals_uninterrupted(uninterrupted, tmp_path):
    settings, slowly = toy_experiment(steps=24, checkpoint_every=5), ToyTask(seconds=0.1)
    workdir = tmp_path / "run"
    with ToyJob(tmp_path, processes=1) as job:
        job.begin(workdir, settings, slowly)
        job.wait_until(lambda: checkpoint_steps(workdir))
        job.processes[0].kill()
        assert job.statuses() == [-signal.SIGKILL] and checkpoint_steps(workdir)[-1] < 24
        job.begin(workdir, settings, slowly)
        job.wait_until(lambda: "step " in job.said() and "left" in job.said())
        job.processes[0].send_signal(signal.SIGTERM)
        assert "stopped by SIGTERM" in job.wait() and job.statuses() == [0]
        assert checkpoint_steps(workdir)[-1] < 24
        assert "done: step 24 of 24 saved" in job.run(workdir, settings, ToyTask())
    restored, expected = restore_variables(workdir), restore_variables(uninterrupted[0])
    assert_same((restored.params, restored.variables), (expected.params, expected.variables))
    assert values(workdir) == values(uninterrupted[0])
    total = account(read_entries(workdir))
    assert total.attempts == 3 and total.seconds["restart"] > 0 and total.seconds["restore"] > 0


def test_saved_config_is_the_resolved_one(finished):
    expected = toy_experiment(steps=24, tensorboard=True, peak_flops=1e12)
    assert restore_variables(finished).config == to_plain_dict(expected)

"""Two processes of four devices each: one job, one set of batches, one step to stop at."""

import dataclasses
import io
import signal

import jax
import numpy as np
import pytest

from nextflow_jax.sharding import MeshConfig
from nextflow_jax.training.checkpoint import checkpoint_steps, restore_variables
from nextflow_jax.training.loop import train
from nextflow_jax.training.metrics import read_metrics
from tests.training.toy import ToyTask, toy_experiment
from tests.training.toy_processes import ToyJob


def test_sigterm_to_one_stops_both_and_one_process_continues(tmp_path):
    settings = toy_experiment(steps=24, checkpoint_every=5)
    shared = dataclasses.replace(settings, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    with ToyJob(tmp_path, processes=2) as job:
        job.begin(tmp_path / "run", shared, ToyTask(seconds=0.1))
        job.wait_until(lambda: "step 4/24" in job.said())
        job.processes[1].send_signal(signal.SIGTERM)
        said = job.wait()
        assert job.statuses() == [0, 0]
    stopped = checkpoint_steps(tmp_path / "run")[-1]
    assert 4 < stopped < 24 and f"stopped by preemption after step {stopped}; saved" in said
    settings, one = toy_experiment(steps=24), jax.devices()[:1]
    train(settings, ToyTask(), tmp_path / "run", one, io.StringIO())
    (tmp_path / "alone").mkdir()
    train(settings, ToyTask(), tmp_path / "alone", one, io.StringIO())
    together, alone = restore_variables(tmp_path / "run").params, restore_variables(tmp_path / "alone").params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), together, alone)
    for ours, theirs in zip(read_metrics(tmp_path / "run"), read_metrics(tmp_path / "alone"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)

"""Two processes of four devices each: one job, one set of batches, one step to stop at."""

import io
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from nextflow_jax.training.checkpoint import checkpoint_steps, restore_variables
from nextflow_jax.training.loop import train
from nextflow_jax.training.metrics import read_metrics
from tests.training.toy import ToyTask, toy_experiment

ROOT = pathlib.Path(__file__).parents[2]


def start(workdir, coordinator, process):
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    arguments = [str(workdir), "24", "0.1", coordinator, str(process)]
    command = [sys.executable, str(ROOT / "tests/training/toy.py"), *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_sigterm_to_one_stops_both_and_one_process_continues(tmp_path):
    coordinator = f"localhost:{free_port()}"
    first, second = (start(tmp_path / "run", coordinator, process) for process in range(2))
    for line in first.stderr:
        if "step 4/24" in line:
            second.send_signal(signal.SIGTERM)
            break
    said = first.communicate(timeout=60)[1], second.communicate(timeout=60)[1]
    assert (first.returncode, second.returncode) == (0, 0), said
    stopped = checkpoint_steps(tmp_path / "run")[-1]
    assert 4 < stopped < 24 and f"stopped by preemption after step {stopped}; saved" in said[0]
    settings, one = toy_experiment(steps=24), jax.devices()[:1]
    train(settings, ToyTask(), tmp_path / "run", one, io.StringIO())
    (tmp_path / "alone").mkdir()
    train(settings, ToyTask(), tmp_path / "alone", one, io.StringIO())
    together, alone = restore_variables(tmp_path / "run").params, restore_variables(tmp_path / "alone").params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), together, alone)
    for ours, theirs in zip(read_metrics(tmp_path / "run"), read_metrics(tmp_path / "alone"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)

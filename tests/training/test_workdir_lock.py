"""A folder takes one job at a time, and a killed one leaves no lock behind."""

import io
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from nextflow_jax.errors import TransientError
from nextflow_jax.training import workdir_lock
from nextflow_jax.training.loop import train
from nextflow_jax.training.workdir_lock import LOCK_FILE, only_job
from tests.training.toy import ToyTask, toy_experiment

ROOT = pathlib.Path(__file__).parents[2]
HOLD = """
import pathlib, sys, time
from nextflow_jax.training.workdir_lock import only_job
with only_job(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """A process that trains in the folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_job_is_told_who_is_there_and_a_killed_one_leaves_nothing(tmp_path, other):
    with pytest.raises(TransientError, match=f"process {other.pid} on .*, since 20.*, trains there; wait"):
        train(toy_experiment(steps=2), ToyTask(), tmp_path, stream=io.StringIO())
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
    other.send_signal(signal.SIGKILL)
    other.wait()
    train(toy_experiment(steps=2), ToyTask(), tmp_path, stream=io.StringIO())
    assert f"process {os.getpid()} on" in (tmp_path / LOCK_FILE).read_text()


def test_only_the_first_process_of_a_job_asks(tmp_path, other, monkeypatch):
    monkeypatch.setattr(workdir_lock.jax, "process_index", lambda: 1)
    with only_job(tmp_path):
        pass


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(workdir_lock.errno.ENOLCK, "no locks available")

    monkeypatch.setattr(workdir_lock.fcntl, "lockf", refuse)
    with only_job(tmp_path):
        pass

"""Processes of a job: how one is described, who is taken for lost, and that the others end soon and say why."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from nextflow_jax.distributed import VARIABLES, DistributedConfig, Peers, joined
from nextflow_jax.errors import TRANSIENT, UserError
from nextflow_jax.supervise import free_port, job_environment

MEMBER = """
import os, signal, time, jax
from nextflow_jax.distributed import DistributedConfig, joined
with joined(DistributedConfig(join_seconds=60, heartbeat_seconds=2)):
    assert jax.process_count() == 3
    print("joined", flush=True)
    if jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(300)
"""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("localhost:1", None, "0"), "JAX_NUM_PROCESSES must be set, too"),
        (("localhost:1", "two", "0"), "must be whole numbers"),
        (("localhost:1", "2", "2"), "JAX_PROCESS_ID=2 must be from 0 to JAX_NUM_PROCESSES - 1 = 1"),
        ((None, None, None), "found no job to join"),
    ],
)
def test_a_job_that_is_not_described(monkeypatch, values, message):
    for name, value in zip(VARIABLES, values):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr("jax.distributed.initialize", _refuse)
    with pytest.raises(UserError, match=message), joined(DistributedConfig()):
        pass


def _refuse(*_, **__):
    raise ValueError("coordinator_address should be defined.")


def test_who_is_lost():
    peers = Peers(3)
    for beat in range(20):
        words = {"0": str(beat), "1": "left" if beat > 3 else str(beat), "2": str(min(beat, 10))}
        lost = peers.lost(words)
        assert lost == ([2] if beat > 15 else [])


def test_the_others_end_when_one_is_killed():
    root, port = pathlib.Path(__file__).parents[1], free_port()

    def start(process):
        environment = {**os.environ, **job_environment(process, 3, port, 1), "PYTHONPATH": str(root)}
        return subprocess.Popen([sys.executable, "-c", MEMBER], env=environment, stderr=subprocess.PIPE, text=True)

    first, killed, other = (start(process) for process in range(3))
    killed.communicate(timeout=120)
    begin = time.monotonic()
    said = first.communicate(timeout=120)[1], other.communicate(timeout=120)[1]
    assert (first.returncode, other.returncode) == (TRANSIENT, TRANSIENT), said
    assert time.monotonic() - begin < 60
    for process, text in zip((0, 2), said):
        line = f"error: process 1 of 3 was not heard of for 2 s; process {process} ends, to start again from the last "
        assert line in text and "Traceback" not in text

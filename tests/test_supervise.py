"""The supervisor starts a job again as long as that may help, and passes on being asked to stop."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from nextflow_jax.supervise import job_environment

ROOT = pathlib.Path(__file__).parents[1]

RECORD = "import os, sys; open(sys.argv[1], 'a').write(os.environ.get('JAX_PROCESS_ID', '-') + ' '); "
FIRST_START = "first = open(sys.argv[1]).read().split().count(os.environ['JAX_PROCESS_ID']) < 2; "


def start(record, options, program):
    command = [sys.executable, "-m", "nextflow_jax.supervise", "--pause", "0.01", *options]
    command += ["--", sys.executable, "-c", RECORD + program, str(record)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)


def run(record, options, program):
    process = start(record, options, program)
    said = process.communicate(timeout=120)[1]
    return process.returncode, said, record.read_text().split()


def test_all_start_again_when_one_is_killed(tmp_path):
    program = FIRST_START + "import time; os.environ['JAX_PROCESS_ID'] == '1' and first and os.kill(os.getpid(), 9); "
    program += "first and time.sleep(100); print('end', file=sys.stderr)"
    options = ("--processes", "2", "--grace", "0.5")
    status, said, starts = run(tmp_path / "record", options, program)
    assert status == 0 and sorted(starts) == ["0", "0", "1", "1"]
    assert "supervise: a process was ended by SIGKILL; restart 1 of 10" in said
    assert "[1] end" in said


def test_it_gives_up_after_so_many_restarts(tmp_path):
    status, said, starts = run(tmp_path / "record", ("--max_restarts", "2"), "sys.exit(75)")
    assert status == 75 and starts == ["-"] * 3
    assert "a process ended with 75; 2 restarts in a row did not help, giving up" in said


@pytest.mark.parametrize("status", [1, 2, 3])
def test_what_a_restart_does_not_cure_is_not_tried_again(tmp_path, status):
    assert run(tmp_path / "record", (), f"sys.exit({status})") == (status, "", ["-"])


def test_sigterm_is_passed_on_and_the_job_ends_well(tmp_path):
    program = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); os.write(2, b'up\\n')"
    process = start(tmp_path / "record", ("--processes", "2"), program + "; time.sleep(100)")
    assert sorted(process.stderr.readline() for _ in range(2)) == ["[1] up\n", "up\n"]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0 and sorted((tmp_path / "record").read_text().split()) == ["0", "1"]


def test_a_single_process_gets_no_job(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    assert job_environment(0, 1, 5, 0) == {}
    assert job_environment(0, 1, 5, 2)["XLA_FLAGS"] == "--xla_a=1 --xla_force_host_platform_device_count=2"
    assert job_environment(3, 4, 5, 0)["JAX_PROCESS_ID"] == "3"


def test_a_profile_is_asked_of_those_that_listen_and_disturbs_no_others(tmp_path):
    """Process 0 listens to SIGUSR1 and then ends the job well; process 1 never does, and lives."""
    program = "import signal, time; number = os.environ['JAX_PROCESS_ID']; "
    program += "number == '0' and signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0)); os.write(2, b'up\\n'); "
    program += "time.sleep(100 if number == '0' else 3)"
    process = start(tmp_path / "record", ("--processes", "2"), program)
    assert sorted(process.stderr.readline() for _ in range(2)) == ["[1] up\n", "up\n"]
    process.send_signal(signal.SIGUSR1)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0 and sorted((tmp_path / "record").read_text().split()) == ["0", "1"]

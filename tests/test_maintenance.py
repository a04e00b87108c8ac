"""Notices of a metadata server of our own reach a supervised process as SIGTERM; a silent server is no notice."""

import contextlib
import http.server
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from nextflow_jax.maintenance import HOST_VARIABLE, Notices

ROOT = pathlib.Path(__file__).parents[1]
QUIET = {"maintenance-event": "NONE", "preempted": "FALSE"}
NOTICES = [("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"), ("preempted", "TRUE")]


@pytest.fixture
def server(monkeypatch):
    """The values that a metadata server at `HOST_VARIABLE` answers with; the test may change them."""
    values = dict(QUIET)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            key = self.path.removeprefix("/computeMetadata/v1/instance/")
            known = self.headers["Metadata-Flavor"] == "Google" and key in values
            self.send_response(200 if known else 403)
            self.end_headers()
            if known:
                self.wfile.write(values[key].encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setenv(HOST_VARIABLE, f"localhost:{running.server_port}")
        yield values
        running.shutdown()


@contextlib.contextmanager
def supervised(program):
    command = [sys.executable, "-m", "nextflow_jax.supervise", "--maintenance", "gce"]
    command += ["--", sys.executable, "-u", "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        yield job
        job.kill()


SAVES = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(0))); "


@pytest.mark.parametrize(("key", "value"), NOTICES)
def test_a_notice_makes_the_job_save_and_end_well(server, key, value):
    with supervised(SAVES + "print('up'); time.sleep(100)") as job:
        assert job.stdout.readline() == "up\n"
        server[key] = value
        said, told = job.communicate(timeout=60)
    assert (job.returncode, said) == (0, "saved\n")
    assert told == f"supervise: {key}: {value}; the job saves and ends\n"


def test_a_job_is_not_started_while_a_notice_stands(server):
    server.update(NOTICES[:1])
    with supervised("print('up')") as job:
        assert "the job is started when that is over" in job.stderr.readline()
        time.sleep(1.5)
        assert job.poll() is None
        server.update(QUIET)
        assert job.communicate(timeout=60)[0] == "up\n"
    assert job.returncode == 0


def test_a_job_that_waits_for_the_end_of_a_notice_can_be_stopped(server):
    server.update(NOTICES[1:])
    with supervised("print('up')") as job:
        job.stderr.readline()
        job.terminate()
        assert job.communicate(timeout=60)[0] == ""
    assert job.returncode == 0


def test_a_machine_that_migrates_alive_runs_on(server):
    server["maintenance-event"] = "MIGRATE_ON_HOST_MAINTENANCE"
    assert Notices(pytest.fail).standing() is None


def test_a_server_that_does_not_answer_is_told_of_once(monkeypatch):
    monkeypatch.setenv(HOST_VARIABLE, "localhost:1")
    said = []
    notices = Notices(said.append)
    assert notices.standing() is None and notices.standing() is None
    assert len(said) == 1 and "notices of maintenance may be missed" in said[0]


def test_one_key_that_is_refused_does_not_hide_the_other(server):
    del server["maintenance-event"]
    server["preempted"] = "TRUE"
    assert Notices(lambda _: None).standing() == "preempted: TRUE"

"""What hangs ends the process with every thread's stack on disk; what has more time, or none to keep, does not."""

import threading
import time

import pytest

from nextflow_jax.errors import TRANSIENT
from nextflow_jax.training import watchdog
from nextflow_jax.training.watchdog import Watchdog


@pytest.fixture
def ended(monkeypatch):
    """Set, with the status, in place of the end of this process."""
    event = threading.Event()

    def leave(status):
        event.status = status
        event.set()
        raise SystemExit

    monkeypatch.setattr(watchdog.os, "_exit", leave)
    return event


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_step_that_hangs(tmp_path, ended, capsys):
    with Watchdog(tmp_path, 0.2) as watch:
        watch.beat(7)
        assert ended.wait(30)
    assert ended.status == TRANSIENT
    said = capsys.readouterr().err
    assert "error: process 0 was at step 7 for more than 0.2 s" in said and str(tmp_path / "hung-0.txt") in said
    assert "test_a_step_that_hangs" in (tmp_path / "hung-0.txt").read_text()


def test_beats_and_phases_with_other_limits(tmp_path, ended):
    with Watchdog(tmp_path, 1.0) as watch:
        for step in range(6):
            watch.beat(step)
            time.sleep(0.25)
        with watch.phase("saving", 0.0):
            time.sleep(1.5)
        watch.beat(7)
    assert not ended.is_set() and not list(tmp_path.iterdir())

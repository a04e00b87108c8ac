"""The command: mistakes end in one line and status 1 before anything is compiled; finished runs say so."""

import os
import signal
import sys

import numpy as np
import pytest

from nextflow_jax import train
from nextflow_jax.config import to_plain_dict
from nextflow_jax.errors import run_entry_point
from nextflow_jax.training.checkpoint import Checkpoints, Position
from nextflow_jax.training.state import TrainState
from tests.training import small

EXPERIMENT = """
from nextflow_jax.config import to_config_dict
from tests.training import small

def get_config(variant):
    return to_config_dict(small.contrastive())
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command on the small contrastive experiment; returns (exit status, stdout, stderr)."""
    small.register_drawn(monkeypatch)
    (tmp_path / "x.py").write_text(EXPERIMENT)

    def run(*arguments):
        with pytest.raises(SystemExit) as exit_:
            run_entry_point(train.main, ["--config", str(tmp_path / "x.py"), *arguments])
        said = capsys.readouterr()
        return exit_.value.code, said.out, said.err

    return run


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.train.step=3", "config.train.step is not a configuration key; did you mean steps?"),
        ("--config.train.steps=many", "config.train.steps = many: expects int"),
        ("--config.train.batch_size=6", "config.train.batch_size = 6: must be a multiple"),
        ("--config.train.batch_size=24", "is more than the 16 training pictures"),
        ("--config.mesh.tensor=3", "3 does not divide the 8 devices"),
        ("--config.optimizer.freeze=('visoin',)", "freeze: 'visoin' matches no parameter"),
    ],
)
def test_mistakes_are_one_line(command, tmp_path, override, message):
    status, out, err = command("--workdir", str(tmp_path / "run"), override)
    assert (status, out) == (1, "")
    assert message in err and err.startswith("error: ") and err.count("\n") == 1


def test_a_folder_that_cannot_be_written(command, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = command("--workdir", str(tmp_path / "file"))
    assert status == 1 and "cannot be written" in err and err.count("\n") == 1


def test_a_finished_run_says_so_and_does_nothing(command, tmp_path):
    workdir, state = tmp_path / "run", TrainState(np.asarray(6, np.int32), {"w": np.ones(1)}, {}, {}, {})
    with Checkpoints(workdir, 1, to_plain_dict(small.contrastive()), {}) as checkpoints:
        checkpoints.save(6, state, Position(6))
    status, out, _ = command("--workdir", str(workdir))
    assert status == 0 and "is already complete: step 6 of 6" in out


def test_help_names_every_status_that_launchers_depend_on(command):
    status, out, _ = command("--help")
    told = out.partition("exit status: ")[2]
    assert status == 0
    for word in ("0 done", "1 bad input", "2 usage", "75 try again", "130 interrupted", "SIGTERM: 0"):
        assert word in told


@pytest.mark.usefixtures("quiet_usr1")
def test_a_profile_asked_for_before_the_first_step_ends_nothing(command, monkeypatch):
    monkeypatch.setattr(train, "load_experiment", lambda *_: os.kill(os.getpid(), signal.SIGUSR1) or sys.exit(9))
    assert command("--workdir", "x")[0] == 9


@pytest.fixture
def quiet_usr1():
    """Whatever a test does to SIGUSR1 is undone; by default the signal would end the tests, so it fails one of them."""
    before = signal.signal(signal.SIGUSR1, lambda *_: pytest.fail("SIGUSR1 would have ended the process"))
    yield
    signal.signal(signal.SIGUSR1, before)


def test_usage(command):
    status, _, err = command("--workdri", "x")
    assert status == 2 and "--workdir" in err

"""A save that fails says so once and leaves nothing behind; what else goes wrong is still told."""

import contextlib
import logging
import resource
import sys
import time
import types
import warnings

import jax
import pytest

from nextflow_jax import sharding
from nextflow_jax.sharding import MeshConfig
from nextflow_jax.training.checkpoint import Checkpoints, Position
from nextflow_jax.training.optimizer import OptimizerConfig
from nextflow_jax.training.quiet_failures import quiet_failures
from nextflow_jax.training.state import init_state, make_layout
from tests.training.toy import ToyTask

FILE_BYTES = 400
"""Small files of a checkpoint can be written, and files of arrays cannot."""


class Stopped(Exception):
    """The end of a run that has failed to save too often."""


@pytest.fixture
def told(monkeypatch):
    """What Python tells of exceptions that nobody can catch."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    return told


def fail_often(workdir):
    """A run of whose saves all but the first fail."""
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    layout = make_layout(ToyTask(), OptimizerConfig(ema_decay=0.9), 10, mesh, sharding.make_rules())
    state = init_state(ToyTask(), layout, seed=3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(workdir, 2, {}, {}) as checkpoints:
        checkpoints.save(1, state, Position(1))
        checkpoints.wait()
        for step in range(2, 7):
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, limits[1]))
            try:
                checkpoints.save(step, state, Position(step))
                checkpoints.wait()
            except (OSError, ValueError) as error:
                assert "File too large" in str(error)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            if step < 6:
                checkpoints.give_up()
        raise Stopped


def test_one_error_each_and_nothing_left(tmp_path, told):
    with contextlib.suppress(Stopped):
        fail_often(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    time.sleep(0.2)
    assert not told


def test_what_nobody_can_catch(told):
    quiet_failures()
    quiet_failures()
    other = types.SimpleNamespace(exc_value=RuntimeError("something else"))
    for unraisable in (other, types.SimpleNamespace(exc_value=RuntimeError("Event loop is closed"))):
        sys.unraisablehook(unraisable)
    assert told == [other]


def test_what_is_logged_and_warned_of_when_memory_is_collected(told, caplog, recwarn):
    quiet_failures()
    for message in ("Future exception was never retrieved\nfuture: <...>", "something else"):
        logging.getLogger("asyncio").error(message)
    for name in ("async_serialize_from_host.<locals>.write_fragment", "ours"):
        warnings.warn(f"coroutine '{name}' was never awaited", RuntimeWarning, stacklevel=1)
    assert [record.getMessage() for record in caplog.records] == ["something else"]
    assert [str(warning.message) for warning in recwarn] == ["coroutine 'ours' was never awaited"]

"""A save that fails says so once and leaves nothing behind; what else goes wrong is still told."""

import resource
import sys
import time
import types

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


@pytest.fixture
def told(monkeypatch):
    """What Python tells of exceptions that nobody can catch."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    return told


def test_one_error_and_nothing_left(tmp_path, told):
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    layout = make_layout(ToyTask(), OptimizerConfig(ema_decay=0.9), 10, mesh, sharding.make_rules())
    state = init_state(ToyTask(), layout, seed=3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    too_large = pytest.raises((OSError, ValueError), match="File too large")
    with too_large, Checkpoints(tmp_path, 2, {}, {}) as checkpoints:
        checkpoints.save(1, state, Position(1))
        checkpoints.wait()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, limits[1]))
            checkpoints.save(2, state, Position(2))
            checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    time.sleep(0.2)
    assert not told


def test_other_exceptions_are_told(told):
    other = types.SimpleNamespace(exc_value=RuntimeError("something else"))
    left_behind = types.SimpleNamespace(exc_value=RuntimeError("Event loop is closed"))
    with quiet_failures():
        for unraisable in (other, left_behind):
            sys.unraisablehook(unraisable)
    assert told == [other]
    sys.unraisablehook(left_behind)
    assert told == [other, left_behind]

"""The drawn pictures, an untrained teacher and shards, for the tests of every kind."""

import jax
import numpy as np
import pytest

from nextflow_jax.config import to_plain_dict
from nextflow_jax.training.checkpoint import Checkpoints, Position
from nextflow_jax.training.tasks import make_task
from tests.training import small


@pytest.fixture(scope="session", autouse=True)
def drawn_pictures():
    with pytest.MonkeyPatch.context() as monkeypatch:
        small.register_drawn(monkeypatch)
        yield


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """Folder with a checkpoint of a dual encoder that was never trained: compiling its step takes long."""
    folder = tmp_path_factory.mktemp("teacher")
    experiment = small.contrastive()
    task = make_task(experiment)
    task.save_artifacts(folder)
    fresh = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, leaf.dtype), small.layout_of(task).abstract)
    with Checkpoints(folder, 1, to_plain_dict(experiment), task.describe()) as checkpoints:
        checkpoints.save(1, fresh, Position(1))
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Folder of extracted shards."""
    out = tmp_path_factory.mktemp("extracted") / "shards"
    small.write_shards(out)
    return out

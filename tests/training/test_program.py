"""What is said before the first step."""

import dataclasses
import io

import jax
import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.sharding import MeshConfig, make_mesh
from nextflow_jax.training import program
from nextflow_jax.training.checkpoint_config import CheckpointConfig
from nextflow_jax.training.progress import Progress
from tests.training.toy import ToyTask, toy_experiment


def said(tmp_path, mesh, checkpoint=CheckpointConfig()):  # noqa: B008  (frozen)
    stream = io.StringIO()
    experiment = dataclasses.replace(toy_experiment(), mesh=mesh, checkpoint=checkpoint)
    layout = program.lay_out(experiment, ToyTask(), make_mesh(mesh, jax.devices()))
    program.build_program(experiment, ToyTask(), layout, tmp_path, Progress("toy", 0, 10, stream))
    return stream.getvalue()


def test_large_arrays_that_nothing_splits_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "LARGE_ARRAY", 32)
    text = said(tmp_path, MeshConfig(data=2, fsdp=4))
    assert "MiB lie whole on each of 8 devices: " in text and "second/kernel 8x2" in text
    table = (tmp_path / program.SHARDING_FILE).read_text()
    assert "embed,mlp" in table and "opt_state/1/nu/first/kernel" in table


def test_the_best_are_known_by_a_metric_that_steps_report(tmp_path):
    for metric, hint in (("squared", r"did you mean squares\?"), ("mfu", "known: .*grad_norm, .*squares")):
        with pytest.raises(UserError, match=f"config.checkpoint.metric = '{metric}': no step reports it; {hint}"):
            said(tmp_path, MeshConfig(), CheckpointConfig(keep_best=1, metric=metric))
    said(tmp_path, MeshConfig(), CheckpointConfig(keep_best=1, metric="squares"))

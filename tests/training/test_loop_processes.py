"""Two processes of four devices each, with faults in one of them: both do the same about it, and lose nothing."""

import dataclasses
import io
import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from nextflow_jax.errors import BAD_INPUT, TRANSIENT
from nextflow_jax.sharding import MeshConfig
from nextflow_jax.training.checkpoint import DAMAGED_FOLDER, checkpoint_steps, restore_variables, step_folder
from nextflow_jax.training.checkpoint_config import CheckpointConfig
from nextflow_jax.training.checkpoint_files import damage
from nextflow_jax.training.goodput import read_entries
from nextflow_jax.training.loop import train
from nextflow_jax.training.metric_table import is_timed
from nextflow_jax.training.metrics import read_metrics
from nextflow_jax.training.recovery import BAD_BATCHES_FILE, RecoveryConfig
from nextflow_jax.training.spikes import SpikeConfig
from tests.training.toy import ToyTask, toy_experiment
from tests.training.toy_processes import ToyJob

ALWAYS = 1e-9
"""Minutes between two checkpoints: every time the clock is looked at, one is due."""


@dataclasses.dataclass
class Leaping(ToyTask):
    """The targets of batch 6 are very large, and those of batch 7 are no numbers."""

    def batches(self, start, part, num_parts):
        for number, batch in enumerate(super().batches(start, part, num_parts), start):
            yield {**batch, "y": batch["y"] * {6: 1e4, 7: np.nan}.get(number, 1)}


def experiment(checkpoint=None, recovery=None, **settings):
    settings = {"steps": 14, "checkpoint_every": 5, "log_every": 1, "keep": 9, **settings}
    changes = {"checkpoint": checkpoint or CheckpointConfig(), "recovery": recovery or RecoveryConfig()}
    return dataclasses.replace(toy_experiment(**settings), mesh=MeshConfig(data=2, fsdp=2, tensor=2), **changes)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    with ToyJob(tmp_path_factory.mktemp("job"), processes=2) as job:
        yield job


@pytest.fixture(scope="module")
def undisturbed(job, tmp_path_factory):
    """The folder of a run without faults."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    job.run(workdir, experiment(), ToyTask())
    assert checkpoint_steps(workdir) == [5, 10, 14]
    return workdir


def values(workdir):
    return [{k: v for k, v in record.items() if not is_timed(k)} for record in read_metrics(workdir)]


def assert_same_runs(left, right):
    """The same bit for bit."""
    assert values(left) == values(right) and len(values(left)) == 14
    ours, theirs = restore_variables(left), restore_variables(right)
    jax.tree.map(np.testing.assert_array_equal, (ours.params, ours.variables), (theirs.params, theirs.variables))


def local_steps(disk):
    """The steps of the local checkpoints of each process."""
    folders = [next(disk.glob("*"), disk) / f"process-{process:05}" for process in range(2)]
    return [sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit()) for folder in folders]


def test_local_checkpoints_are_taken_where_all_have_them(job, undisturbed, tmp_path):
    """Process 1 never gets the local checkpoint of step 8 written, and is killed; its clock stands besides."""
    workdir, disk = tmp_path / "run", tmp_path / "disk"
    settings = CheckpointConfig(local=str(disk), local_minutes=ALWAYS)
    job.begin(workdir, experiment(settings), ToyTask(), stuck_at=8, clock_stands=True)
    job.wait_until(lambda: 8 in local_steps(disk)[0] and checkpoint_steps(workdir))
    # Time to write that of step 9, and so to remove that of step 7, if it did not wait for the other.
    time.sleep(0.5)
    job.processes[1].kill()
    assert job.statuses() == [TRANSIENT, -signal.SIGKILL]
    assert checkpoint_steps(workdir) == [5] and local_steps(disk) == [[7, 8], [6, 7]]
    shutil.copytree(workdir, tmp_path / "replaced")
    shutil.copytree(disk, tmp_path / "disks")
    said = job.run(workdir, experiment(settings), ToyTask())
    assert "going on from the local checkpoint of step 7" in said
    assert_same_runs(workdir, undisturbed)

    # The machine of process 1 is another one.
    workdir, disk = tmp_path / "replaced", tmp_path / "disks"
    shutil.rmtree(next(disk.glob("*/process-00001")))
    settings = CheckpointConfig(local=str(disk), local_minutes=60.0)
    said = job.run(workdir, experiment(settings), ToyTask())
    begun_at = [entry.first for entry in read_entries(workdir) if entry.attempt == 2][1]
    assert begun_at == 5 and "local checkpoint" not in said and local_steps(disk) == [[], []]
    assert_same_runs(workdir, undisturbed)


def test_both_roll_back_and_leave_out_the_same_batches(job, tmp_path):
    recovery = RecoveryConfig(SpikeConfig(grad_norm=20.0, window=4), max_rollbacks=1)
    together, alone = tmp_path / "together", tmp_path / "alone"
    said = job.run(together, experiment(recovery=recovery, max_bad_steps=1), Leaping())
    assert "is not finite at step 8 (2 in a row): back to the checkpoint of step 5, and on with batch 8" in said
    alone.mkdir()
    settings = dataclasses.replace(experiment(recovery=recovery, max_bad_steps=1), mesh=MeshConfig())
    train(settings, Leaping(), alone, jax.devices()[:1], io.StringIO())
    for ours, theirs in zip(read_metrics(together), read_metrics(alone), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
    ours, theirs = restore_variables(together), restore_variables(alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours.params, theirs.params)
    bad = [json.loads(line) for line in (together / BAD_BATCHES_FILE).read_text().splitlines()]
    assert [(record["batch"], record["reason"]) for record in bad] == [
        (6, "leapt above the recent ones"),
        (7, "is not finite"),
    ]


def test_time_is_that_of_one_clock(job, tmp_path):
    settings = CheckpointConfig(minutes=ALWAYS)
    job.run(tmp_path, experiment(settings, steps=6, log_every=2, checkpoint_every=100), ToyTask(), clock_stands=True)
    assert checkpoint_steps(tmp_path) == [2, 4, 6]


def test_what_one_process_finds_damaged_counts_for_both(job, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(step_folder(tmp_path, 14))
    folder = step_folder(tmp_path, 10)
    names = sorted(name for path in folder.glob("checksums-*") for name in json.loads(path.read_text()))
    file = folder / max(names[1::2], key=lambda name: (folder / name).stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    problem = f"step 10 is damaged: {file} has changed"
    assert not damage(folder, 0, 2) and str(file) in damage(folder, 1, 2)

    job.begin(tmp_path, experiment(CheckpointConfig(strict=True)), ToyTask())
    assert job.statuses() == [BAD_INPUT, BAD_INPUT]
    for process in range(2):
        lines = [line for line in job.said(process).splitlines() if problem in line]
        assert len(lines) == 1 and "Traceback" not in job.said(process)

    said = job.run(tmp_path, experiment(), ToyTask())
    assert f"{problem.replace('damaged', 'damaged and put aside')} " in said
    assert len(list((tmp_path / DAMAGED_FOLDER).glob("10-*"))) == 1
    assert_same_runs(tmp_path, undisturbed)

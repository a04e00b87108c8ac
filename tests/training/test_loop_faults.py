"""Runs with faults in them: bad batches, damaged checkpoints, full disks, processes that die between checkpoints."""

import dataclasses
import errno
import io
import json

import jax
import numpy as np
import pytest

from nextflow_jax.errors import TransientError, UserError
from nextflow_jax.training.checkpoint import DAMAGED_FOLDER, Checkpoints, checkpoint_steps, step_folder
from nextflow_jax.training.checkpoint_config import CheckpointConfig
from nextflow_jax.training.loop import train
from nextflow_jax.training.metrics import read_metrics
from nextflow_jax.training.recovery import BAD_BATCHES_FILE, RecoveryConfig
from tests.training.toy import ToyTask, toy_experiment

ONE = jax.devices()[:1]


class Died(Exception):
    """The end of a process, as far as a test can have one."""


@dataclasses.dataclass
class Poisoned(ToyTask):
    """Some batches have targets that are no numbers; making batch `dies` ends the process; others are left out."""

    bad: tuple[int, ...] = ()
    dies: int = -1
    left_out: tuple[int, ...] = ()

    def batches(self, start, part, num_parts):
        order = [number for number in range(60) if number not in self.left_out]
        for number in order[start:]:
            if number == self.dies:
                raise Died
            batch = next(super().batches(number, part, num_parts))
            yield {**batch, "y": batch["y"] * (np.nan if number in self.bad else 1)}


def experiment(recovery=None, checkpoint=None, **settings):
    settings = {"steps": 14, "checkpoint_every": 4, "log_every": 2, **settings}
    changes = {"recovery": recovery or RecoveryConfig(), "checkpoint": checkpoint or CheckpointConfig()}
    return dataclasses.replace(toy_experiment(**settings), **changes)


def run(workdir, task, *arguments, **settings):
    """(the last state, what was said)."""
    stream = io.StringIO()
    state = train(experiment(*arguments, **settings), task, workdir, ONE, stream)
    return jax.device_get(state), stream.getvalue()


def losses(workdir):
    return [(record["step"], record["loss"]) for record in read_metrics(workdir)]


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without faults: its folder and its last state."""
    workdir = tmp_path_factory.mktemp("plain")
    return workdir, run(workdir, ToyTask())[0]


@pytest.mark.parametrize("dies", [-1, 9])
def test_too_many_bad_steps_go_back_and_on_after_the_bad_batches(tmp_path, dies):
    """Batches 5 and 6 spoil steps 6 and 7: from the checkpoint of step 4, the run goes on with batch 7."""
    task, recovery = Poisoned(bad=(5, 6), dies=dies), RecoveryConfig(max_rollbacks=1)
    rolled = tmp_path / "rolled"
    rolled.mkdir()
    if dies >= 0:
        # After the rollback and before the next checkpoint: the same command finds the bad steps again.
        with pytest.raises(Died):
            run(rolled, task, recovery, max_bad_steps=1)
        assert checkpoint_steps(rolled) == [4]
    state, said = run(rolled, dataclasses.replace(task, dies=-1), recovery, max_bad_steps=1)
    assert "is not finite at step 7 (2 in a row): back to the checkpoint of step 4, and on with batch 7" in said
    (tmp_path / "reference").mkdir()
    expected, _ = run(tmp_path / "reference", Poisoned(left_out=(4, 5, 6)))
    assert_same(state, expected)
    assert losses(rolled) == losses(tmp_path / "reference")
    found = [json.loads(line) for line in (rolled / BAD_BATCHES_FILE).read_text().splitlines()]
    assert [(record["step"], record["batch"]) for record in found][-2:] == [(6, 5), (7, 6)]
    assert found[-1]["documents"][0] == "6/0"


def test_rollbacks_are_bounded_also_over_restarts(tmp_path):
    task, recovery = Poisoned(bad=(5, 9, 10)), RecoveryConfig(max_rollbacks=1)
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"not finite at step 8 \(1 in a row\) after 1 rollbacks; the checkpoint of step 4 stays"
        ):
            run(tmp_path, task, recovery)


def test_bad_steps_before_any_checkpoint_stop_the_run(tmp_path):
    none = r"not finite at step 3 \(1 in a row\); the run's folder has no checkpoint yet to go back to; lower"
    with pytest.raises(UserError, match=f"{none} .*checkpoint_every") as error:
        run(tmp_path, Poisoned(bad=(2,)), RecoveryConfig(max_rollbacks=3))
    assert "max_rollbacks" not in str(error.value)
    with pytest.raises(UserError, match=f"{none} [^ ]*, or raise config.train.max_bad_steps$"):
        run(tmp_path, Poisoned(bad=(2,)))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(plain, tmp_path):
    with pytest.raises(Died):
        run(tmp_path, Poisoned(dies=10))
    assert checkpoint_steps(tmp_path) == [4, 8]
    file = max(step_folder(tmp_path, 8).rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=f"checkpoint of step 8 is damaged: {file} has changed"):
        run(tmp_path, ToyTask(), None, CheckpointConfig(strict=True))
    state, said = run(tmp_path, ToyTask())
    assert f"step 8 is damaged and put aside: {file} has changed" in said
    assert len(list((tmp_path / DAMAGED_FOLDER).glob("8-*"))) == 1
    assert_same(state, plain[1])
    assert losses(tmp_path) == losses(plain[0])


def test_the_local_checkpoint_is_taken_where_it_is_newer(plain, tmp_path):
    settings = CheckpointConfig(local=str(tmp_path / "disk"), local_minutes=1e-9)
    workdir = tmp_path / "run"
    workdir.mkdir()
    with pytest.raises(Died):
        run(workdir, Poisoned(dies=11), None, settings)
    assert checkpoint_steps(workdir) == [4, 8]
    state, said = run(workdir, ToyTask(), None, settings)
    assert "going on from the local checkpoint of step 10" in said
    assert_same(state, plain[1])
    assert losses(workdir) == losses(plain[0])


def test_local_checkpoints_of_another_run_do_not_count(tmp_path):
    settings = CheckpointConfig(local=str(tmp_path / "disk"), local_minutes=1e-9)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        with pytest.raises(Died):
            run(tmp_path / name, Poisoned(dies=4), None, settings, checkpoint_every=100)
    assert len(list((tmp_path / "disk").iterdir())) == 2
    (tmp_path / "first" / "run_id").unlink()
    assert "local checkpoint" not in run(tmp_path / "first", ToyTask(), None, settings)[1]


@pytest.fixture
def failing(monkeypatch):
    """Saves of these steps fail, as on a full disk."""
    steps, save = set(), Checkpoints.save

    def saving(self, step, *arguments):
        if step in steps:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, step, *arguments)

    monkeypatch.setattr(Checkpoints, "save", saving)
    return steps


def test_a_save_that_fails_is_tried_again_soon(plain, tmp_path, failing):
    failing |= {4}
    state, said = run(tmp_path, ToyTask(), None, CheckpointConfig(keep_every=1))
    assert "warning: a checkpoint could not be written ([Errno 28] No space left on device); there is none yet" in said
    assert checkpoint_steps(tmp_path) == [5, 8, 12, 14]
    assert_same(state, plain[1])


def test_saves_that_keep_failing_stop_the_run(tmp_path, failing):
    failing |= set(range(5, 15))
    with pytest.raises(TransientError, match="No space left on device.*that of step 4 stays the last; make room"):
        run(tmp_path, ToyTask(), None, CheckpointConfig(max_failed_saves=2))
    assert checkpoint_steps(tmp_path) == [4]


def test_a_full_disk_under_the_metrics_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr("nextflow_jax.training.metrics.MetricsFiles.write", full)
    with pytest.raises(TransientError, match="metrics.jsonl: No space left on device; the last checkpoint stays"):
        run(tmp_path, ToyTask())


def test_which_checkpoints_stay(tmp_path):
    class Wavy(ToyTask):
        """Batch 4 is easy, so the loss logged at step 5 is low."""

        def batches(self, start, part, num_parts):
            for number, batch in enumerate(super().batches(start, part, num_parts), start):
                yield {**batch, "y": batch["y"] * (0.01 if number == 4 else 5)}

    kept = CheckpointConfig(keep_every=6, keep_best=1)
    run(tmp_path, Wavy(), None, kept, checkpoint_every=1, log_every=1, keep=2)
    assert checkpoint_steps(tmp_path) == [5, 6, 12, 13, 14]

"""What the command says about a run's checkpoints, and about one that is damaged."""

import numpy as np
import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.training import checkpoint_report
from nextflow_jax.training.averaging import average_checkpoints
from nextflow_jax.training.checkpoint import Checkpoints, Position, restore_variables, step_folder
from nextflow_jax.training.state import TrainState


@pytest.fixture
def workdir(tmp_path):
    state = TrainState(np.int32(0), {"layer": {"w": np.ones((2, 3), np.float32)}}, {}, {"mu": np.zeros(4)}, {})
    with Checkpoints(tmp_path, 2, {"kind": "decoder", "name": "x", "seed": 7}, {"shards": "abc"}) as checkpoints:
        for step in (5, 10):
            checkpoints.save(step, state, Position(step))
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "loss": 2.5}\n{"step": 8, "loss": 1.25}\n')
    return tmp_path


def test_the_list_and_the_newest(workdir, capsys):
    checkpoint_report.main([str(workdir), "--arrays", "--verify", "--show_config"])
    said = capsys.readouterr().out
    first, second = said.splitlines()[:2]
    assert first.startswith("step 5 ") and first.endswith("checksums  loss 2.5") and second.endswith("loss 1.25")
    for line in (
        "step 10: decoder 'x', format 1",
        "shards: abc",
        "params/layer/w  float32(2, 3)  24",
        "opt_state: 1 arrays of float64, 0.00 MiB",
        '"seed": 7',
        "2 checkpoints are as they were written",
    ):
        assert line in said


def test_a_damaged_one_is_named(workdir):
    file = next(path for path in sorted(step_folder(workdir, 5).rglob("*")) if path.is_file() and path.stat().st_size)
    file.unlink()
    with pytest.raises(UserError, match=f"step 5: {file}: No such file"):
        checkpoint_report.main([str(workdir), "--verify"])


def test_a_mean_says_of_what_and_is_exported_so(workdir, tmp_path, capsys):
    out = tmp_path / "mean"
    checkpoint_report.main([str(workdir), "--average", "2", "--out", str(out)])
    capsys.readouterr()
    checkpoint_report.main([str(out)])
    assert "\n  the mean of steps 5, 10\n" in capsys.readouterr().out
    assert average_checkpoints(out, 1).meta["averaged_steps"] == [5, 10]


def test_folders_inside_of_the_run(workdir, capsys):
    for folder, step in (("checkpoints", 10), ("checkpoints/5", 5), ("checkpoints/10/", 10)):
        checkpoint_report.main([str(workdir / folder)])
        assert f"\nstep {step}: decoder 'x'" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"{workdir} has no checkpoint of step 7; there are: 5, 10"):
        checkpoint_report.main([str(workdir / "checkpoints" / "7")])
    with pytest.raises(SystemExit):
        checkpoint_report.main([str(workdir / "checkpoints" / "5"), "--step", "10"])
    for folder in ("checkpoints", "checkpoints/5"):
        with pytest.raises(UserError, match=f"{folder} is inside of a run's folder; give that: {workdir}$"):
            restore_variables(workdir / folder)


def test_a_mean_that_cannot_be_written(workdir, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="--out .*file/mean: cannot be written .*choose another folder"):
        checkpoint_report.main([str(workdir), "--average", "1", "--out", str(tmp_path / "file" / "mean")])

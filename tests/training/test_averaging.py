"""The mean of checkpoints is the mean of their parameters, whatever their dtype."""

import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.training import checkpoint_report
from nextflow_jax.training.averaging import average_checkpoints
from nextflow_jax.training.checkpoint import Checkpoints, Position, restore_variables
from nextflow_jax.training.state import TrainState


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Checkpoints 1 to 4 with parameters of 1, 2, 4 and 8."""
    folder = tmp_path_factory.mktemp("run")
    with Checkpoints(folder, 4, {"kind": "toy", "name": "t"}, {"data": "d"}) as checkpoints:
        for step in range(1, 5):
            value = 2.0 ** (step - 1)
            params = {"w": jnp.full((3,), value), "h": jnp.full((2,), value, jnp.bfloat16)}
            variables = {"codebook": {"e": np.full(2, step, np.int32)}}
            checkpoints.save(step, TrainState(np.int32(step), params, variables, {}, {}), Position(step))
    return folder


def test_of_the_last(workdir):
    mean = average_checkpoints(workdir, 3)
    np.testing.assert_allclose(mean.params["w"], 14 / 3, rtol=1e-6)
    assert mean.params["h"].dtype == jnp.bfloat16 and float(mean.params["h"][0]) == float(jnp.bfloat16(14 / 3))
    assert mean.variables["codebook"]["e"][0] == 4 and mean.meta["averaged_steps"] == [2, 3, 4]


def test_up_to_a_step_and_of_one(workdir):
    np.testing.assert_array_equal(average_checkpoints(workdir, 2, last=2).params["w"], np.full(3, 1.5))
    np.testing.assert_array_equal(average_checkpoints(workdir, 1, last=3).params["w"], np.full(3, 4.0))


def test_more_than_there_are(workdir):
    with pytest.raises(UserError, match=r"cannot average 5 checkpoints, there are 4 \(steps 1, 2, 3, 4\)"):
        average_checkpoints(workdir, 5)


def test_written_as_a_run(workdir, tmp_path, capsys):
    checkpoint_report.main([str(workdir), "--average", "2", "--out", str(tmp_path / "mean")])
    assert "the mean of 2 checkpoints" in capsys.readouterr().out
    np.testing.assert_array_equal(restore_variables(tmp_path / "mean").params["w"], np.full(3, 6.0))

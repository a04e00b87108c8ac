"""Which local checkpoints are a run's, and where they can be."""

import dataclasses
import errno

import jax
import pytest

from nextflow_jax import sharding
from nextflow_jax.errors import UserError
from nextflow_jax.sharding import MeshConfig, StateRules
from nextflow_jax.training import saving
from nextflow_jax.training.checkpoint import Position
from nextflow_jax.training.checkpoint_config import CheckpointConfig
from nextflow_jax.training.optimizer import OptimizerConfig
from nextflow_jax.training.saving import find_newest, open_local
from nextflow_jax.training.state import init_state, make_layout
from tests.training.toy import ToyTask

PLAIN = sharding.make_rules()
SPLIT = sharding.make_rules((("embed", ("data",)),))


def opened(tmp_path, rules, said=None, local="disk"):
    settings = CheckpointConfig(local=str(tmp_path / local))
    mesh = sharding.make_mesh(MeshConfig(data=2), jax.devices()[:2])
    return open_local(tmp_path, settings, mesh, rules, (said or []).append), settings, mesh


@pytest.mark.parametrize("rules", [StateRules(PLAIN, SPLIT, PLAIN), StateRules(SPLIT, PLAIN, PLAIN)])
def test_a_state_laid_out_otherwise_does_not_count(tmp_path, rules):
    said = []
    local, settings, mesh = opened(tmp_path, StateRules.alike(PLAIN))
    layout = make_layout(ToyTask(), OptimizerConfig(), 10, mesh, PLAIN)
    local.save(3, init_state(ToyTask(), layout, seed=0), dataclasses.asdict(Position(3)), {})
    local.wait()
    assert opened(tmp_path, StateRules.alike(PLAIN))[0].steps() == [3]
    assert find_newest(tmp_path, settings, opened(tmp_path, rules)[0], said.append) is None and not said
    # It stays for whoever looks again, until a run goes on without it.
    assert opened(tmp_path, StateRules.alike(PLAIN))[0].steps() == [3]


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    (tmp_path / "disk").write_text("in the way")
    with pytest.raises(UserError, match="config.checkpoint.local = .*disk': cannot be written .*choose another"):
        opened(tmp_path, StateRules.alike(PLAIN))


def test_a_full_disk_is_told_and_may_have_room_later(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving, "probe", full)
    said = [""]
    assert opened(tmp_path, StateRules.alike(PLAIN), said)[0].steps() == []
    assert "cannot be written (No space left on device); make room" in said[-1]

"""Local checkpoints give back every byte where it was, and only to the layout that wrote them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax import sharding
from nextflow_jax.sharding import MeshConfig
from nextflow_jax.training.checkpoint import Position
from nextflow_jax.training.checkpoint_local import LocalTier
from nextflow_jax.training.optimizer import OptimizerConfig
from nextflow_jax.training.state import init_state, make_layout
from tests.training.toy import ToyTask

POSITION = dataclasses.asdict(Position(3, {"loss": [1.0, 2.0]}))


@pytest.fixture(scope="module")
def layout_and_state():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    layout = make_layout(ToyTask(), OptimizerConfig(ema_decay=0.9), 10, mesh, sharding.make_rules())
    state = init_state(ToyTask(), layout, seed=3)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.params)
    state = state.replace(params=half)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    return abstract, state


def test_every_array_comes_back_where_it_was(layout_and_state, tmp_path):
    abstract, state = layout_and_state
    tier = LocalTier(tmp_path / "run", "here")
    for step in (1, 2, 3):
        tier.save(step, state.replace(step=state.step + step), POSITION, {"config": {"a": 1}})
    tier.wait()
    assert tier.steps() == [2, 3] and tier.read_about(3) == (POSITION, {"config": {"a": 1}})
    restored = tier.restore(3, abstract)
    jax.tree.map(np.testing.assert_array_equal, restored, state.replace(step=state.step + 3))
    assert restored.params["first"]["kernel"].sharding == state.params["first"]["kernel"].sharding
    assert restored.params["first"]["kernel"].dtype == jnp.bfloat16


def test_each_part_of_an_array_is_written_once(layout_and_state, tmp_path):
    state = layout_and_state[1]
    tier = LocalTier(tmp_path / "run", "here")
    tier.save(1, state, POSITION, {})
    tier.wait()
    size = (tmp_path / "run" / "1" / "arrays.bin").stat().st_size
    assert size == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def test_other_layouts_and_damaged_files_do_not_count(layout_and_state, tmp_path):
    state = layout_and_state[1]
    tier = LocalTier(tmp_path / "run", "here")
    tier.save(1, state, POSITION, {})
    tier.save(2, state, POSITION, {})
    tier.wait()
    assert LocalTier(tmp_path / "run", "elsewhere").steps() == []
    path = tmp_path / "run" / "2" / "arrays.bin"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert tier.steps() == [1]
    (tmp_path / "run" / "1" / "index.json").write_text("{")
    assert tier.steps() == []


def test_later_steps_and_what_is_unfinished_are_removed(layout_and_state, tmp_path):
    for step, key in ((1, "here"), (2, "here"), (4, "elsewhere")):
        tier = LocalTier(tmp_path / "run", key)
        tier.save(step, layout_and_state[1], POSITION, {})
        tier.wait()
    (tmp_path / "run" / "3.unfinished").mkdir()
    LocalTier(tmp_path / "run", "here").forget_after(2)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["2"]


def test_what_cannot_be_written_is_raised_later(layout_and_state, tmp_path):
    (tmp_path / "run").write_text("in the way")
    tier = LocalTier(tmp_path / "run", "here")
    tier.save(1, layout_and_state[1], POSITION, {})
    with pytest.raises(OSError):
        tier.wait()
    tier.wait()

"""Local checkpoints give back every byte where it was, and only to the layout that wrote them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax import sharding
from nextflow_jax.errors import UserError
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


def saved_by(layout_and_state, folder):
    tier = LocalTier(folder / "run", "here")
    tier.save(1, layout_and_state[1], POSITION, {})
    tier.wait()
    return tier


def test_other_floating_dtypes_are_converted(layout_and_state, tmp_path):
    abstract, state = layout_and_state
    other = {jnp.dtype(jnp.bfloat16): jnp.float32, jnp.dtype(jnp.float32): jnp.bfloat16}

    def wanted(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, other.get(leaf.dtype, leaf.dtype), sharding=leaf.sharding)

    restored = saved_by(layout_and_state, tmp_path).restore(1, jax.tree.map(wanted, abstract))
    assert restored.params["first"]["kernel"].dtype == jnp.float32 and restored.step.dtype == jnp.int32
    expected = jax.tree.map(lambda leaf: leaf.astype(other.get(leaf.dtype, leaf.dtype)), state)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_arrays_that_do_not_fit_are_named(layout_and_state, tmp_path):
    abstract, tier = layout_and_state[0], saved_by(layout_and_state, tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path / 'run' / '1'}: ema/first/bias is in the checkpoint and not part"):
        tier.check(1, abstract.replace(ema={}))
    more = abstract.replace(params={**abstract.params, "third": abstract.step})
    with pytest.raises(UserError, match="params/third is needed by this configuration and missing"):
        tier.restore(1, more)


def test_a_rule_for_spikes_may_come_and_go(layout_and_state, tmp_path):
    """Its running means start anew, or are left."""
    abstract, state = layout_and_state
    recent = {"steps": jax.ShapeDtypeStruct((), jnp.float32, sharding=abstract.step.sharding)}
    restored = saved_by(layout_and_state, tmp_path).restore(1, abstract.replace(recent=recent))
    assert float(restored.recent["steps"]) == 0
    tier = saved_by((abstract, state.replace(recent={"steps": state.step + 3})), tmp_path / "other")
    assert tier.restore(1, abstract).recent == {}

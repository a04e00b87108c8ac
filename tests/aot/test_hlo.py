"""The reader of compiled programs: texts by hand, and what XLA makes of a small scan here."""

import jax
import jax.numpy as jnp
import pytest

from nextflow_jax.aot import hlo
from tests.aot.small_hlo import NESTED, PIECES


def executed(text, opcode):
    return [step for step in hlo.executed(hlo.parse(text)) if step.instruction.opcode == opcode]


def test_instructions_of_a_text():
    program = hlo.parse(NESTED)
    assert (program.entry, program.devices, len(program.computations)) == ("main", 8, 5)
    gathered = next(one for one in program.computations["inner_body"] if one.opcode == "all-gather")
    assert (gathered.name, gathered.operands, gathered.num_bytes) == ("gathered", ("x",), 64 * 64 * 2)
    assert "dimensions={0}" in gathered.attributes
    root = program.computations["outer_body"][-1]
    assert (root.is_root, root.shape, root.operands) == (True, "(s32[], bf16[8,64]{1,0})", ("loop", "y"))


def test_loops_are_multiplied():
    """The inner one counts from 1 to 4, as its condition and its start say; the outer one has a note."""
    (step,) = executed(NESTED, "all-gather")
    assert (step.times, step.loops) == (15, ("while x5", "while x3"))


def test_a_loop_of_unknown_length_counts_once():
    text = NESTED.replace('backend_config={"known_trip_count":{"n":"5"}}', "metadata={}")
    (step,) = executed(text, "all-gather")
    assert (step.times, step.loops) == (3, ("while x?", "while x3"))


def test_instructions_over_several_lines_and_in_fusions():
    (scattered, *_) = executed(PIECES, "fusion")
    assert "source_line=3" in scattered.instruction.attributes
    assert [step.computation for step in executed(PIECES, "all-gather")] == ["step_one", "step_two"]


def test_bytes_of_types():
    assert hlo.shape_bytes("(f32[16,16]{1,0}, u32[], token[], pred[3])") == 1024 + 4 + 3
    assert hlo.shape_bytes("bf16[<=8,2]{1,0:T(8,128)(2,1)}") == 32


def test_other_texts_are_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("module @jit_f {}")


@pytest.mark.parametrize("length", [1, 7])
def test_a_scan_compiled_here(length):
    def scanned(x):
        return jax.lax.scan(lambda c, _: (jnp.sort(jnp.sin(c)), None), x, length=length)[0]

    text = jax.jit(scanned).lower(jax.ShapeDtypeStruct((16,), jnp.float32)).compile().as_text()
    sorts = executed(text, "sort")
    assert sum(step.times for step in sorts) == length

"""What the compiler says of memory, also of programs that do not fit."""

import jax
import jax.numpy as jnp
import pytest

from nextflow_jax.aot.compiling import read_memory, read_refusal

GIB = 2**30


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (46.99G) "
            "exceeds available HBM (15.75G).",
            46.99,
            15.75,
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.23G of 15.75G hbm.", 17.23, 15.75),
        ("RESOURCE_EXHAUSTED: something else", 0, 0),
    ],
)
def test_refusals(message, needed, available):
    assert read_refusal(message) == (int(needed * GIB), int(available * GIB))


def test_temporaries_of_a_cpu_count_at_its_peak():
    """Two products of 1 MiB stand beside the argument before they meet in a number."""
    program = jax.jit(lambda x: jnp.sum((x @ x) @ jnp.sin(x @ x)), donate_argnums=())
    memory = read_memory(program.lower(jax.ShapeDtypeStruct((512, 512), jnp.float32)).compile(), simulated=True)
    assert memory.arguments == 2**20 and memory.temporaries >= 2 * 2**20
    assert memory.peak == memory.arguments + memory.temporaries + 4

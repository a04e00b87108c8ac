"""What the compiler says of programs that do not fit."""

import pytest

from nextflow_jax.aot.compiling import read_refusal

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

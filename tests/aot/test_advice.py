"""What to change when a step does not fit: reckoned by hand."""

import dataclasses

import pytest

from nextflow_jax.aot.advice import Situation, advise
from nextflow_jax.aot.compiling import Memory

GIB = 2**30
MESH = {"slice": 1, "data": 1, "fsdp": 8, "tensor": 1, "context": 1}


def situation(arguments=2, peak=18, batch_size=64, accumulate=1, leaner=(), **mesh):
    memory = Memory(arguments * GIB, (peak - arguments) * GIB, peak * GIB)
    return Situation(memory, 10 * GIB, {**MESH, **mesh}, {"model.remat": leaner}, batch_size, accumulate)


def test_fewer_rows_at_once():
    """8 rows a device take 16 GiB beside 2 of arguments; 7 of 10 are left for them: 2 rows, and 4 would take 8."""
    (rows,) = advise(situation())
    assert rows.startswith("--config.train.accumulate=4 ")
    assert rows.endswith("--config.train.batch_size=16")
    (again,) = advise(situation(batch_size=128, accumulate=2))
    assert again.startswith("--config.train.accumulate=8 ")


def test_a_leaner_policy_comes_with_it():
    changes = advise(situation(leaner=("offload", "full")))
    assert changes[1] == "--config.model.remat=full (keeps less there)"


def test_data_parallel_copies_of_the_state():
    changes = advise(situation(arguments=8, peak=12, data=4, batch_size=32))
    assert changes == ["--config.mesh.data=1 --config.mesh.fsdp=32 (about 6.0 GiB less state on a device)"]


def test_one_row_a_device():
    assert advise(situation(batch_size=8)) == ["--config.mesh.context=2 (devices that share a row), or more chips"]


@pytest.mark.parametrize(("arguments", "times"), [(10, 2), (24, 8)])
def test_a_state_that_fills_the_devices(arguments, times):
    (change,) = advise(situation(arguments=arguments, peak=arguments + 1, batch_size=8))
    assert change.startswith(f"{times} times as many chips")


def test_rows_that_do_not_divide_are_not_proposed():
    odd = dataclasses.replace(situation(), batch_size=8 * 7)
    (rows,) = advise(odd)
    assert rows.startswith("--config.train.accumulate=7 ")

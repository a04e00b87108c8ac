"""What to change when a step does not fit: reckoned by hand; 9 GiB of 10 may be used."""

import dataclasses

import pytest

from nextflow_jax.aot.advice import Situation, advise
from nextflow_jax.aot.compiling import Memory

GIB = 2**30
MESH = {"slice": 1, "data": 1, "fsdp": 8, "tensor": 1, "context": 1}


def situation(arguments=2, peak=18, batch_size=64, accumulate=1, leaner=(), gradients=0, **mesh):
    memory = Memory(arguments * GIB, (peak - arguments) * GIB, peak * GIB)
    policies = {"model.remat": leaner}
    return Situation(memory, 10 * GIB, {**MESH, **mesh}, policies, batch_size, accumulate, gradients * GIB)


def test_fewer_rows_at_once():
    """8 rows a device take 16 GiB beside 2 of arguments; 7 are left for them: 2 rows, for 4 would take 8."""
    (rows,) = advise(situation())
    assert rows.startswith("--config.train.accumulate=4 ")
    assert rows.endswith("--config.train.batch_size=16")
    (again,) = advise(situation(batch_size=128, accumulate=2))
    assert again.startswith("--config.train.accumulate=8 ")


def test_gradients_do_not_grow_with_rows():
    """8 rows take 12 GiB beside 2 of arguments and 4 of gradients; 3 are left: 2 rows. Beside 7 of gradients, none."""
    (rows,) = advise(situation(gradients=4))
    assert rows.startswith("--config.train.accumulate=4 ")
    (chips,) = advise(situation(gradients=7))
    assert chips == "2 times as many chips with --config.mesh.data=1 --config.mesh.fsdp=16"


def test_a_leaner_policy_comes_with_it():
    changes = advise(situation(leaner=("offload", "full")))
    assert changes[1] == "--config.model.remat=full (keeps less there; compiling tells how much)"


def test_data_parallel_copies_of_the_state():
    changes = advise(situation(arguments=8, peak=12, data=4))
    assert changes == ["--config.mesh.data=1 --config.mesh.fsdp=32 (about 6.0 GiB less state on a device)"]


def test_changes_that_fit_only_together():
    """A quarter of 16 GiB of state leaves 5 for what 8 rows take 16 for: 2 rows."""
    (change,) = advise(situation(arguments=16, peak=32, data=4, batch_size=256))
    assert change == (
        "--config.mesh.data=1 --config.mesh.fsdp=32 (about 12.0 GiB less state on a device) together with "
        "--config.train.accumulate=4 (the same batch in parts) or --config.train.batch_size=64"
    )


def test_a_copy_less_is_not_proposed_where_it_leaves_too_much():
    """Half of 54 GiB is 27; 16 chips, of a row each, have 3.4 of state and 4 of the rest."""
    (change,) = advise(situation(arguments=54, peak=70, data=2, fsdp=1, batch_size=8))
    assert change == (
        "8 times as many chips with --config.mesh.data=1 --config.mesh.fsdp=16 --config.train.batch_size=16"
    )


def test_devices_that_share_a_row():
    """16 GiB of a row beside 2 of state are shared by four, for 7 are left; by two where copies of the state go too."""
    assert advise(situation(batch_size=8)) == [
        "--config.mesh.fsdp=2 --config.mesh.context=4 --config.train.accumulate=4 (devices that share a row)"
    ]
    assert advise(situation(batch_size=8, fsdp=1, data=8)) == [
        "2 times as many chips with --config.mesh.data=1 --config.mesh.fsdp=8 --config.mesh.context=2 "
        "(devices that share a row)"
    ]


@pytest.mark.parametrize(("arguments", "times"), [(10, 2), (24, 4)])
def test_a_state_that_fills_the_devices(arguments, times):
    (change,) = advise(situation(arguments=arguments, peak=arguments + 1, batch_size=8))
    assert change == (
        f"{times} times as many chips with --config.mesh.data=1 --config.mesh.fsdp={8 * times} "
        f"--config.train.batch_size={8 * times}"
    )


def test_more_chips_work_on_the_same_batch():
    """40 GiB on 8 times as many chips are 5; 8 rows that took 32 GiB are one row, 4 more."""
    (change,) = advise(situation(arguments=40, peak=72))
    assert change == "8 times as many chips with --config.mesh.data=1 --config.mesh.fsdp=64"
    (change,) = advise(situation(arguments=40, peak=72, accumulate=2, batch_size=128))
    assert change == "8 times as many chips with --config.mesh.data=1 --config.mesh.fsdp=64"


def test_rows_that_do_not_divide_are_not_proposed():
    odd = dataclasses.replace(situation(), batch_size=8 * 7)
    (rows,) = advise(odd)
    assert rows.startswith("--config.train.accumulate=7 ")

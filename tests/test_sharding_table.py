"""The table of a state."""

from nextflow_jax import sharding
from nextflow_jax.sharding_table import HEADER, placed_arrays, sharding_table, table_of, whole_on_every_device
from nextflow_jax.training.state import make_layout
from tests.test_sharding import boxed, cube
from tests.training.toy import ToyTask, toy_experiment


def test_table_counts_bytes():
    tree = boxed((4, 6), "embed", "mlp")
    table = sharding_table(tree, sharding.shardings_of(tree, cube(), sharding.make_rules()))
    header = "array shape dtype logical axes partition bytes on a device"
    expected = "w 4x6 float32 embed,mlp (fsdp, tensor) 24"
    assert " ".join(table.split()) == f"{header} {expected} total 96 bytes, 24 on each device"


def test_columns_are_below_their_names():
    header, *lines, _ = table_of(state_rows()).splitlines()
    for column in HEADER:
        at = header.index(column)
        assert all(line[at - 1] == " " != line[at] for line in lines if at), column


def state_rows():
    layout = make_layout(ToyTask(), toy_experiment().optimizer, 10, cube(), sharding.make_rules())
    return placed_arrays(layout.abstract, layout.axes, layout.shardings)


def test_every_array_of_a_state_has_a_line():
    lines = [line.split() for line in table_of(state_rows()).splitlines()]
    by_name = {line[0]: line[1:] for line in lines}
    kernel = ["4x8", "float32", "embed,mlp", "(fsdp,", "tensor)", "32"]
    names = ("params/first/kernel", "opt_state/1/mu/first/kernel", "opt_state/1/nu/first/kernel", "ema/first/kernel")
    assert {tuple(by_name[name]) for name in names} == {tuple(kernel)}
    assert by_name["variables/running/mean"] == ["8", "float32", "-", "replicated", "32"]
    assert by_name["step"] == ["scalar", "int32", "-", "replicated", "4"]


def test_what_lies_whole_on_every_device():
    found = whole_on_every_device(state_rows(), 8)
    assert [row.name for row in found] == ["variables/running/mean", "params/second/bias", "opt_state/1/mu/second/bias",
                                           "opt_state/1/nu/second/bias", "ema/second/bias"]  # fmt: skip

"""Collectives of compiled programs: by hand, and of fully sharded training on simulated devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nextflow_jax.aot import hlo
from nextflow_jax.aot.collectives import group_size, largest, read_collectives, summarise
from tests.aot.small_hlo import NESTED, PIECES


def test_loops_groups_and_rings():
    summary = summarise(read_collectives(hlo.parse(NESTED)))
    gathered = 15 * 64 * 64 * 2
    assert summary == {
        "all-gather": {"count": 15, "bytes": gathered, "wire_bytes": gathered * 7 // 8},
        "all-reduce": {"count": 1, "bytes": 4, "wire_bytes": 2 * 4 * 3 // 4},
    }


def test_the_largest():
    program = hlo.parse(NESTED)
    (first, second) = largest(read_collectives(program), 5)
    assert (first["kind"], first["count"], first["bytes_each"], first["loops"]) == (
        *("all-gather", 15, 64 * 64 * 2),
        ["while x5", "while x3"],
    )
    assert second["kind"] == "all-reduce"
    assert largest(read_collectives(program), 1) == [first]


def test_pieces_of_one_operation_count_once():
    summary = summarise(read_collectives(hlo.parse(PIECES)))
    assert summary == {
        "all-gather": {"count": 1, "bytes": 4096, "wire_bytes": 3072},
        "collective-permute": {"count": 1, "bytes": 1024, "wire_bytes": 1024},
        "reduce-scatter": {"count": 1, "bytes": 4096, "wire_bytes": 3072},
        "send": {"count": 1, "bytes": 1024, "wire_bytes": 1024},
    }


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,4},{1,5}}", 2),
        ("[4,16]<=[64]", 16),
        ("mesh['x'=4,'y'=2], device_ids=([8]) {'y'}", 2),
        ("{}", 8),
    ],
)
def test_every_way_to_write_groups(groups, size):
    instruction = hlo.Instruction(
        "a", "f32[]", "all-reduce", (), "", f", replica_groups={groups}, to_apply=%add", False
    )
    assert group_size(instruction, 8) == size


def test_fully_sharded_training_by_hand():
    """Five layers of 64 x 64, split over 8: each weight is gathered once each way, each gradient reduced once."""
    mesh = Mesh(jax.devices()[:8], ("fsdp",))
    split, rows = NamedSharding(mesh, PartitionSpec(None, "fsdp")), NamedSharding(mesh, PartitionSpec("fsdp"))

    def step(weights, x):
        def loss(weights):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0].sum()

        return weights - jax.grad(loss)(weights)

    shapes = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32), jax.ShapeDtypeStruct((32, 64), jnp.float32)
    compiled = jax.jit(step, in_shardings=(split, rows), out_shardings=split).lower(*shapes).compile()
    summary = summarise(read_collectives(hlo.parse(compiled.as_text())))
    weights = 5 * 64 * 64 * 4
    assert summary["all-gather"]["bytes"] == 2 * weights
    assert summary["all-reduce"]["bytes"] == weights, "the CPU's compiler has no reduce-scatter"

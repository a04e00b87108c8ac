"""Names of topologies, what is refused, and simulated devices."""

import pytest

from nextflow_jax.aot.topology import open_topology, parse_topology
from nextflow_jax.errors import UserError


def test_names():
    assert parse_topology("v5p:4x4x8") == ("v5p", (4, 4, 8))
    assert parse_topology("v5e:16x16x1") == ("v5e", (16, 16))
    assert parse_topology("TPU7x:2x2x1") == ("tpu7x", (2, 2, 1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5p-128", "expects GENERATION:AxB"),
        ("v9:2x2", "'v9' is no generation"),
        ("v5pp:4x4x4", "did you mean v5p"),
        ("v5p:4x4", "v5p has 3 dimensions"),
        ("v5e:0x2", "at least one chip"),
    ],
)
def test_other_names_are_refused_with_known_ones(name, message):
    with pytest.raises(UserError, match=message) as caught:
        open_topology(name)
    assert "v5p:4x4x4" in str(caught.value)


def test_simulated_devices():
    topology = open_topology("cpu:4", slices=2)
    assert (topology.chips, len(topology.devices), topology.chip.simulated) == (8, 8, True)
    with pytest.raises(UserError, match="not 9"):
        open_topology("cpu:9")
    with pytest.raises(UserError, match="at least 1"):
        open_topology("cpu:1", slices=0)

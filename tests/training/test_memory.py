import numpy as np
import pytest

from nextflow_jax.training.memory import memory_in_use


def test_the_fullest_device_counts():
    stats = [{"bytes_in_use": 2**30, "peak_bytes_in_use": 2**32}, {"bytes_in_use": 3 * 2**29}, None]
    found = memory_in_use(stats)
    assert found["memory/device_gib"] == 1.5 and found["memory/device_peak_gib"] == 4


def test_the_host_sees_what_it_allocates():
    before = memory_in_use([None])
    assert set(before) == {"memory/host_gib"}
    ballast = np.ones(2**28 // 8)
    assert memory_in_use([])["memory/host_gib"] - before["memory/host_gib"] == pytest.approx(0.25, abs=0.05)
    assert ballast[0] == 1

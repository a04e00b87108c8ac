"""Seconds of a step by resource: by hand."""

import pytest

from nextflow_jax.aot import roofline
from nextflow_jax.aot.chips import CHIPS, PEAK_FLOPS


@pytest.mark.parametrize(
    ("generation", "shape", "share"),
    [
        ("v5p", (4, 4, 4), 1.0),
        ("v5p", (2, 2, 1), 1 / 3),
        ("v5e", (16, 16), 1.0),
        ("v5e", (8, 16), 0.75),
        ("v5e", (8, 8), 0.5),
    ],
)
def test_dimensions_without_joined_ends_lose_half(generation, shape, share):
    chip = CHIPS[generation]
    assert roofline.ici_bandwidth(chip, shape) == pytest.approx(share * chip.ici_bandwidth)


def test_the_busiest_resource_bounds_a_step():
    chip = CHIPS["v5p"]
    work = roofline.Work(flops=459e12, hbm_bytes=2 * 2765e9, ici_bytes=3 * 600e9, dcn_bytes=4 * 6.25e9)
    found = roofline.estimate(work, chip, (4, 4, 4))
    assert (found.compute, found.hbm, found.ici, found.dcn) == pytest.approx((1, 2, 3, 4))
    assert (found.bound, found.overlapped, found.in_turn) == ("dcn", pytest.approx(4), pytest.approx(10))
    assert roofline.mfu_bound(64 * 459e12, 64, chip, found.overlapped) == pytest.approx(0.25)


def test_one_chip_sends_nothing():
    work = roofline.Work(flops=1e12, hbm_bytes=0.0, ici_bytes=5.0)
    assert roofline.estimate(work, CHIPS["cpu"], (1,)).ici == 0


def test_a_device_is_what_the_machine_shows():
    """v4's two cores are one device there, TPU7x's are two."""
    assert PEAK_FLOPS["TPU v4"] == 275e12
    assert PEAK_FLOPS["TPU7x"] == 2307e12 / 2

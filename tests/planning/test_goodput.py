import dataclasses
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from nextflow_jax.planning.goodput import (
    Reliability,
    best_saving,
    daly_interval,
    goodput,
    mean_time_between_failures,
    young_interval,
)

RELIABILITY = Reliability()
MEANS = st.floats(600.0, 1e7)
SAVES = st.floats(0.1, 60.0)


def test_units_llama_3_failed_every_three_hours():
    assert mean_time_between_failures(RELIABILITY, 16_384) == pytest.approx(54 * 24 / 419 * 3600)


def simulated(interval, blocking, mean, restart, cycles=20_000):
    """Useful share of the time of a run with failures at random moments, also while it saves and comes back."""
    rng = np.random.default_rng(0)
    useful = elapsed = 0.0
    for _ in range(cycles):
        left = rng.exponential(mean)
        need = interval + blocking
        while left < need:
            elapsed += left
            left = rng.exponential(mean)
            need = interval + blocking + restart
        elapsed += need
        useful += interval
    return useful / elapsed


@pytest.mark.parametrize(
    ("interval", "blocking", "mean", "restart"), [(600.0, 20.0, 3000.0, 300.0), (60.0, 5.0, 1000.0, 30.0)]
)
def test_the_formula_agrees_with_a_simulation(interval, blocking, mean, restart):
    expected = goodput(interval, blocking, mean, restart)
    assert simulated(interval, blocking, mean, restart) == pytest.approx(expected, rel=0.015)


@given(SAVES, MEANS)
def test_dalys_interval_is_the_best(blocking, mean):
    best = daly_interval(blocking, mean)
    at_best = goodput(best, blocking, mean, 0.0)
    around = [goodput(best * factor, blocking, mean, 0.0) for factor in np.geomspace(0.2, 5, 41)]
    assert at_best >= max(around) * (1 - 1e-3)
    assert at_best > goodput(best / 3, blocking, mean, 0.0) and at_best > goodput(best * 3, blocking, mean, 0.0)


@given(SAVES, MEANS)
def test_young_is_daly_to_first_order(blocking, mean):
    assert abs(daly_interval(blocking, mean) - young_interval(blocking, mean)) <= blocking


@given(st.floats(10.0, 1e4), SAVES, MEANS, st.floats(0.0, 1e3))
def test_goodput_is_a_share_and_falls_with_failures_restarts_and_saves(interval, blocking, mean, restart):
    share = goodput(interval, blocking, mean, restart)
    assert 0 <= share < 1
    assert share >= goodput(interval, blocking, mean / 2, restart)
    assert share >= goodput(interval, blocking, mean, restart + 10)
    assert share >= goodput(interval, blocking * 2, mean, restart)


def test_without_failures_only_saving_costs():
    assert goodput(90.0, 10.0, 1e12, 600.0) == pytest.approx(0.9)


def test_more_chips_fail_more_often_and_save_more_often():
    few, many = (best_saving(8_000_000_000, chips, RELIABILITY) for chips in (256, 4096))
    assert many.interval < few.interval and many.goodput < few.goodput < 1


def test_an_interval_is_not_shorter_than_writing():
    slow = dataclasses.replace(RELIABILITY, storage_bandwidth=1e5)
    writing = RELIABILITY.finish_seconds + 12 * 8e9 / 64 / 1e5
    assert best_saving(8_000_000_000, 256, slow).interval == pytest.approx(writing)


def test_reliability_must_be_positive():
    assert not list(RELIABILITY.faults())
    (fault,) = dataclasses.replace(RELIABILITY, restart_seconds=0.0).faults()
    assert fault.field == "restart_seconds" and math.isclose(float(fault.fix.split()[-1]), 600)

import dataclasses

import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.planning.published import LLAMA_3_1_8B, published_runs
from nextflow_jax.planning.step_time import Efficiency, fit_efficiency, relative_error, step_time
from nextflow_jax.planning.work import Batch, Placement, chip_work

KNOWN = Efficiency({"v5e": 0.8, "v5p": 0.7, "v6e": 0.6}, ici=0.4, dcn=0.3, doubling=0.02)
BATCH = Batch(4096, 4096, 4096 * 1000.0)
CUBES = ((4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8), (8, 8, 16), (8, 16, 16), (16, 16, 16))


def seconds(place, efficiency=KNOWN, batch=BATCH):
    return step_time(chip_work(LLAMA_3_1_8B, batch, place), place, efficiency)


def test_the_fit_finds_the_parameters_that_made_the_runs():
    runs = [
        dataclasses.replace(run, seconds=run.seconds * (1 + relative_error(run, KNOWN))) for run in published_runs()
    ]
    found = fit_efficiency(runs)
    assert found.compute == pytest.approx(dict(KNOWN.compute))
    assert (found.ici, found.dcn, found.doubling) == pytest.approx((KNOWN.ici, KNOWN.dcn, KNOWN.doubling))


def test_no_parameter_is_negative_whatever_the_runs_say():
    runs = [dataclasses.replace(run, seconds=run.seconds / run.place.slices) for run in published_runs()]
    found = fit_efficiency(runs)
    assert min(found.ici, found.dcn, found.doubling) >= 0.0
    assert all(share > 0 for share in found.compute.values())


def test_published_runs_are_fitted_within_4_percent_and_predicted_within_17():
    runs = published_runs()
    efficiency = fit_efficiency([run for run in runs if run.fitted])
    assert all(abs(relative_error(run, efficiency)) < (0.04 if run.fitted else 0.17) for run in runs)


def test_more_chips_are_never_slower_and_gain_until_the_links_bound():
    times = [seconds(Placement("v5p", cube, fsdp=cube[0] * cube[1] * cube[2])) for cube in CUBES]
    for fewer, more in zip(times, times[1:]):
        assert more.total < fewer.total
        assert more.total >= fewer.total / 2 - 1e-9
        assert more.ici == pytest.approx(fewer.ici, rel=0.02)
    small = dataclasses.replace(BATCH, rows=256, length=1024, pairs=1024 * 500.0)
    bound = [seconds(Placement("v5p", cube, fsdp=cube[0] * cube[1] * cube[2]), batch=small) for cube in CUBES[-2:]]
    assert bound[-1].ici > bound[-1].compute and bound[-1].total > 0.8 * bound[-2].total


def test_slices_cost_what_they_send_and_something_for_every_doubling():
    one, two, four = (seconds(Placement("v6e", (16, 16), slices, fsdp=256)) for slices in (1, 2, 4))
    assert one.dcn == one.doubling == 0.0 < two.dcn < four.dcn
    assert two.compute * 2 == pytest.approx(one.compute)
    assert two.doubling / two.compute * 2 == pytest.approx(four.doubling / four.compute)


def test_parts_add_up():
    time = seconds(Placement("v5e", (16, 16), 2, fsdp=256))
    assert time.total == pytest.approx(time.compute + time.update + time.ici + time.dcn + time.doubling)


def test_a_generation_that_nobody_published_is_refused():
    with pytest.raises(UserError, match=r"tpu7x.*known: v5e, v5p, v6e"):
        seconds(Placement("tpu7x", (4, 4, 4), fsdp=64))

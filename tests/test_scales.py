"""Scale schedules against the published token counts and the rounding rule."""

import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.scales import (
    BASE_LADDER,
    FINAL_GRIDS,
    ScaleSchedule,
    ScheduleFamily,
    level_family,
    level_schedule,
    make_schedule,
)


@pytest.mark.parametrize(("level", "scales", "tokens"), [(256, 12, 900), (512, 16, 3684), (1024, 18, 10084)])
def test_published_token_counts(level, scales, tokens):
    schedule = level_schedule(level)
    assert (schedule.num_scales, schedule.num_tokens) == (scales, tokens)


def test_all_ratios_have_similar_length_and_grow():
    assert len(set(FINAL_GRIDS)) == 41
    for grid in FINAL_GRIDS:
        schedule = make_schedule(grid)
        assert schedule.final_grid == grid and schedule.num_scales == len(BASE_LADDER)
        assert 0.9 < schedule.num_tokens / 10084 < 1.1
        assert schedule.grids[0] == (1, 1)
        for k, side in list(enumerate(BASE_LADDER))[1:]:
            assert schedule.grids[k] == tuple(max(1, round(edge * side / 64)) for edge in grid)


def test_offsets_tile_the_code_array():
    schedule = make_schedule((4, 6), (1, 2, 3, 4))
    covered = [index for k in range(schedule.num_scales) for index in range(*schedule.slice(k).indices(10**6))]
    assert covered == list(range(schedule.num_tokens))


@pytest.mark.parametrize("grids", [(), ((2, 2),), ((1, 1), (3, 3), (2, 2)), ((1, 1), (2, 2), (2, 2))])
def test_wrong_schedules_are_refused(grids):
    with pytest.raises(UserError, match="scale schedule"):
        ScaleSchedule(grids)


@pytest.mark.parametrize("ladder", [(), (2, 4), (1, 3, 3)])
def test_wrong_ladders_are_refused(ladder):
    with pytest.raises(UserError, match="ladder"):
        make_schedule((4, 4), ladder)
    assert [fault.field for fault in ScheduleFamily(ladder=ladder).faults()] == ["ladder"]


def test_a_family_knows_its_sizes_only():
    family = ScheduleFamily(ladder=(1, 2, 4), stride=8, sizes=((32, 32), (32, 64)))
    assert family.schedule((32, 64)).final_grid == (4, 8)
    assert family.max_scales == 3
    with pytest.raises(UserError, match="32x32, 32x64"):
        family.schedule((64, 64))
    assert [fault.field for fault in ScheduleFamily(sizes=((30, 32),)).faults()] == ["sizes"]


@pytest.mark.parametrize(("level", "scales"), [(256, 12), (512, 16), (1024, 18)])
def test_the_family_of_a_level_has_all_published_schedules(level, scales):
    family = level_family(level)
    assert not list(family.faults()) and len(set(family.sizes)) == 41 and (level, level) in family.sizes
    assert family.max_scales == scales and (level // 2, 2 * level) in family.sizes
    for grid, size in zip(FINAL_GRIDS, family.sizes):
        assert family.schedule(size) == level_schedule(level, grid)
        assert size[0] / size[1] == grid[0] / grid[1]


def test_a_family_of_no_level():
    with pytest.raises(UserError, match="known levels"):
        level_family(128)

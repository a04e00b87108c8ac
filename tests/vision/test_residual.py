import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.resize import resize_grid
from nextflow_jax.scales import ScaleSchedule, level_family
from nextflow_jax.vision import residual

SQUARE = ScaleSchedule(((1, 1), (2, 2), (3, 3), (4, 4)))
WIDE = ScaleSchedule(((1, 1), (1, 2), (2, 5), (3, 7)))
TALL = ScaleSchedule(((1, 1), (4, 1), (6, 2)))
CHANNELS = 5


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def refinement(groups=2):
    kernels = random(groups, 3, 3, CHANNELS, CHANNELS, seed=7) * 0.2
    return residual.Refinement(kernels, random(groups, CHANNELS, seed=8))


def rounded(k, rest):
    """A quantiser that loses something: whole numbers only."""
    return rest.round(), rest.round()


def walk_by_subtraction(schedule, target, phi):
    """VAR's algorithm 1 as published: what is left is carried along and each scale is subtracted from it."""
    rest, codes = target, []
    for k, grid in enumerate(schedule.grids):
        code = np.asarray(resize_grid(rest, grid, "area")).round()
        step = resize_grid(code, schedule.final_grid, "bicubic")
        rest = rest - (step if phi is None else convolve(step, phi, k, schedule.num_scales))
        codes.append(code)
    return target - rest, codes


def convolve(step, phi, k, num_scales):
    group = residual.refinement_index(k, num_scales, len(phi.kernels))
    layout = ("NHWC", "HWIO", "NHWC")
    kernel = jnp.asarray(phi.kernels[group])
    out = jax.lax.conv_general_dilated(jnp.asarray(step), kernel, (1, 1), "SAME", dimension_numbers=layout)
    return np.asarray(step * 0.5 + (out + phi.biases[group]) * 0.5)


@pytest.mark.parametrize("phi", [None, refinement()], ids=["plain", "refined"])
@pytest.mark.parametrize("schedule", [SQUARE, WIDE, TALL], ids=["square", "wide", "tall"])
def test_encoding_equals_the_published_walk(schedule, phi):
    target = random(2, *schedule.final_grid, CHANNELS) * 3
    maps, codes = residual.encode_scales(schedule, target, rounded, phi)
    expected_map, expected_codes = walk_by_subtraction(schedule, target, phi)
    np.testing.assert_allclose(maps[-1], expected_map, atol=1e-5)
    for ours, theirs in zip(codes, expected_codes, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("phi", [None, refinement()], ids=["plain", "refined"])
@pytest.mark.parametrize("schedule", [SQUARE, WIDE, TALL], ids=["square", "wide", "tall"])
def test_decoding_repeats_the_maps_of_encoding(schedule, phi):
    target = random(2, *schedule.final_grid, CHANNELS) * 3
    maps, codes = residual.encode_scales(schedule, target, rounded, phi)
    flat = np.concatenate([code.reshape(2, -1, CHANNELS) for code in codes], axis=1)
    on_device = residual.accumulate(schedule, jnp.asarray(flat), phi)
    for ours, again, device in zip(maps, residual.accumulate(schedule, flat, phi), on_device, strict=True):
        np.testing.assert_allclose(again, ours, atol=1e-5)
        np.testing.assert_allclose(device, ours, atol=1e-5)


def test_numpy_stays_numpy():
    target = random(*SQUARE.final_grid, CHANNELS)
    maps, _ = residual.encode_scales(SQUARE, target, rounded, refinement())
    assert all(isinstance(accumulated, np.ndarray) and accumulated.dtype == np.float32 for accumulated in maps)


def test_one_by_one_scale_is_the_mean():
    target = random(2, 4, 4, CHANNELS)
    rest = residual.residual_at(SQUARE, 0, target, residual.start(SQUARE, target))
    np.testing.assert_allclose(rest[:, 0, 0], target.mean(axis=(1, 2)), atol=1e-6)
    accumulated = residual.add_scale(SQUARE, 0, np.zeros_like(target), rest)
    np.testing.assert_allclose(accumulated, np.broadcast_to(rest, target.shape), atol=1e-6)


def test_last_scale_leaves_nothing_when_codes_are_exact():
    target = random(2, *WIDE.final_grid, CHANNELS)
    maps, _ = residual.encode_scales(WIDE, target, lambda k, rest: (rest, None))
    np.testing.assert_allclose(maps[-1], target, atol=1e-5)


def test_next_scale_features_shrink_to_the_grid_that_follows():
    accumulated = random(2, *WIDE.final_grid, CHANNELS)
    shapes = [residual.next_scale_features(WIDE, k, accumulated).shape[1:3] for k in range(WIDE.num_scales)]
    assert shapes == [*WIDE.grids[1:], WIDE.final_grid]


def test_refinement_groups_follow_the_published_ticks():
    # VAR, ten scales and four shared convolutions: the ticks are 1/12, 13/36, 23/36, 11/12.
    assert [residual.refinement_index(k, 10, 4) for k in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert [residual.refinement_index(k, 4, 2) for k in range(4)] == [0, 0, 1, 1]
    assert residual.refinement_index(0, 1, 4) == 0


def test_a_map_on_the_wrong_grid_is_refused():
    with pytest.raises(ValueError, match=r"embeddings \(3, 3, 5\): the schedule says grid \(2, 2\)"):
        residual.add_scale(SQUARE, 1, random(4, 4, 5), random(3, 3, 5))
    with pytest.raises(ValueError, match=r"accumulated .* grid \(4, 4\)"):
        residual.add_scale(SQUARE, 1, random(5, 4, 5), random(2, 2, 5))


def test_codes_of_all_41_schedules_give_back_the_maps_they_were_made_of():
    """The 256 level: the codes alone make the maps of encoding, at every scale."""
    phi, table = refinement(4), random(32, CHANNELS, seed=1)

    def nearest(k, rest):
        codes = np.argmin(np.square(rest[..., None, :] - table).sum(axis=-1), axis=-1)
        return table[codes], codes.reshape(-1)

    schedules = level_family(256).schedules()
    assert len(schedules) == 41
    for (height, width), schedule in schedules.items():
        assert schedule.final_grid == (height // 16, width // 16)
        target = random(*schedule.final_grid, CHANNELS, seed=2)
        maps, codes = residual.encode_scales(schedule, target, nearest, phi)
        codes = np.concatenate(codes)
        assert codes.shape == (schedule.num_tokens,)
        for made, wanted in zip(residual.accumulate(schedule, table[codes], phi), maps, strict=True):
            np.testing.assert_allclose(made, wanted, atol=1e-6)

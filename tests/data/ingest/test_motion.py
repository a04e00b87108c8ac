import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nextflow_jax.data.ingest.config import VideoConfig
from nextflow_jax.data.ingest.motion import (
    CELL,
    cell_differences,
    choose_frames,
    kind_of_motion,
    longest_shot,
    thumbnail_size,
)
from tests.data.ingest.videos import panning, square, static

CONFIG = VideoConfig()


def thumbnails(frames):
    size = thumbnail_size(frames.shape[1:])
    return np.stack([np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BOX)) for frame in frames])


def kind(frames, config=CONFIG):
    return kind_of_motion(cell_differences(thumbnails(frames)), config)


@pytest.mark.parametrize("picture", [(72, 128), (1080, 1920), (512, 512), (1920, 1080), (20, 9000), (9000, 16)])
def test_small_pictures_are_of_whole_cells_and_about_one_area(picture):
    height, width = thumbnail_size(picture)
    assert height % CELL == width % CELL == 0 and min(height, width) >= CELL
    if max(picture) < 3 * min(picture):
        assert 0.8 < height * width / (36 * 64) < 1.25
        assert abs(np.log(height / width) - np.log(picture[0] / picture[1])) < 0.15


def test_differences_are_means_over_cells():
    frames = np.random.default_rng(0).integers(0, 256, (5, 8, 12), np.uint8)
    found = cell_differences(frames)
    assert found.shape == (4, 2, 3)
    for pair, row, column in np.ndindex(found.shape):
        rows, columns = slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4)
        one, other = frames[pair, rows, columns].astype(float), frames[pair + 1, rows, columns].astype(float)
        np.testing.assert_allclose(found[pair, row, column], np.abs(one - other).mean() / 255, rtol=1e-5)
    assert cell_differences(frames[:1]).shape == (0, 2, 3)


@pytest.mark.parametrize("seed", range(3))
def test_kinds_of_motion(seed):
    assert kind(static(8, seed)) == "static"
    assert kind(panning([6] * 7, seed)) == "camera"
    assert kind(square([6] * 7, seed)) == "object"
    assert kind(square([6] * 7, seed, side=8)) == "object", "however small"
    assert kind(static(1, seed)) == "static"


def test_a_camera_that_stands_still_for_most_of_the_time_is_no_object():
    assert kind(panning([0] * 12 + [6] * 3)) == "camera"


def test_kinds_of_motion_follow_the_rules_of_the_configuration():
    frames = panning([6] * 7)
    assert kind(frames, VideoConfig(cell_changes=0.9)) == "static"
    assert kind(frames, VideoConfig(camera_above=1.0)) == "object"
    assert kind(square([6] * 7), VideoConfig(static_below=0.2)) == "static"
    assert kind(square([6] * 7), VideoConfig(camera_above=0.01)) == "camera"


def test_a_cut_divides_shots_and_a_pan_does_not():
    frames = np.concatenate([panning([3] * 4), 255 - panning([3] * 6)])
    motion = cell_differences(thumbnails(frames)).mean(axis=(1, 2))
    assert longest_shot(motion, CONFIG.cut_above) == (5, 12)
    pan = cell_differences(thumbnails(panning([3] * 9))).mean(axis=(1, 2))
    assert longest_shot(pan, CONFIG.cut_above) == (0, 10)


@given(st.lists(st.booleans(), max_size=20))
def test_the_longest_shot_has_no_cut_and_none_is_longer(cuts):
    start, stop = longest_shot(np.asarray(cuts, np.float32), 0.5)
    assert 0 <= start < stop <= len(cuts) + 1 and not any(cuts[start : stop - 1])
    runs = "".join(".|" if cut else "." for cut in [*cuts, False]).split("|")
    assert stop - start == max(map(len, runs)), "the frames between cuts"
    assert start == sum(map(len, runs[: [len(run) for run in runs].index(stop - start)])), "the first of them"


def test_motion_chooses_frames_at_equal_shares_of_what_moved():
    """A square that is slow, then fast: half of the way lies in the last fifth of the time."""
    steps = [1] * 32 + [4] * 8
    motion = cell_differences(thumbnails(square(steps, side=24))).mean(axis=(1, 2))
    chosen = choose_frames(motion, np.arange(41) / 4, 5, "motion")
    way = np.cumsum([0, *steps])
    np.testing.assert_allclose(way[chosen], [0, 16, 32, 48, 64], atol=3)
    assert choose_frames(motion, np.arange(41) / 4, 5, "uniform").tolist() == [0, 10, 20, 30, 40]


def test_uniform_is_in_time_and_not_in_frames():
    times = np.asarray([0.0, 0.1, 0.2, 0.3, 5.1, 10.0])
    assert choose_frames(np.ones(5), times, 3, "uniform").tolist() == [0, 4, 5]


def test_frames_that_would_be_the_same_are_left_out():
    """Still, a jump, still; the same with noise."""
    assert choose_frames(np.asarray([0, 0, 0.2, 0, 0]), np.arange(6.0), 5, "motion").tolist() == [0, 3]
    assert choose_frames(np.asarray([0.004, 0.004, 0.2, 0.004]), np.arange(5.0), 5, "motion").tolist() == [0, 3]
    assert choose_frames(np.zeros(5), np.arange(6.0), 3, "motion").tolist() == [0, 3, 5], "nothing moves: by time"


@given(
    motion=st.lists(st.floats(0, 1), max_size=30),
    most=st.integers(1, 8),
    selection=st.sampled_from(["motion", "uniform"]),
)
def test_chosen_frames_are_in_order_and_no_more_than_asked(motion, most, selection):
    times = np.arange(len(motion) + 1) / 2
    chosen = choose_frames(np.asarray(motion), times, most, selection)
    assert 1 <= len(chosen) <= most and np.all(np.diff(chosen) > 0)
    assert chosen[0] >= 0 and chosen[-1] <= len(motion)
    assert chosen[0] == 0
    if selection == "uniform" and most > 1:
        assert chosen[-1] == len(motion) and len(chosen) == min(most, len(times))


@given(st.lists(st.floats(0.01, 1), min_size=4, max_size=30))
def test_shares_of_motion_are_equal_up_to_one_step(motion):
    chosen = choose_frames(np.asarray(motion), np.arange(len(motion) + 1.0), 4, "motion")
    passed = np.concatenate([[0], np.cumsum(motion)])
    for wanted in np.linspace(0, passed[-1], 4):
        assert np.abs(passed[chosen] - wanted).min() <= max(motion) + 1e-9

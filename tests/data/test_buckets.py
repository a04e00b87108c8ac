"""Buckets: nearest ratios, and batches that are pure, fair, and the same for every host."""

import collections
import math

import numpy as np
import pytest

from nextflow_jax.data.buckets import BucketBatches, assign_buckets, nearest_size
from nextflow_jax.data.pictures import PictureInfo, PicturesConfig, PictureSet
from nextflow_jax.scales import level_family

SIZES = level_family(256).sizes


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_size_is_its_own_bucket_at_any_magnification(size):
    assert nearest_size(size, SIZES) == size
    assert nearest_size((3 * size[0] + 1, 3 * size[1] + 1), SIZES) == size


def test_extreme_ratios_fall_into_the_outermost_buckets():
    assert nearest_size((1, 1000), SIZES) == (128, 512)
    assert nearest_size((1000, 1), SIZES) == (512, 128)


def test_ratios_compare_alike_both_ways():
    for height, width in np.random.default_rng(0).integers(20, 2000, (200, 2)).tolist():
        chosen = nearest_size((height, width), SIZES)
        assert nearest_size((width, height), SIZES) == chosen[::-1]
        errors = [abs(math.log(h / w) - math.log(height / width)) for h, w in SIZES]
        assert errors[SIZES.index(chosen)] == pytest.approx(min(errors))


def test_of_equal_ratios_the_nearest_area():
    assert nearest_size((60, 66), [(16, 16), (64, 64), (256, 256)]) == (64, 64)


def test_pictures_are_assigned_by_their_native_sizes():
    sizes = [(24, 40), (40, 24), (33, 33), (30, 50)]
    infos = [PictureInfo(f"p{i}", "train", {}, "", "", "", "", {}, str(i)) for i in range(4)]
    pictures = PictureSet(PicturesConfig(), infos, lambda position: None, {}, sizes)
    found = assign_buckets(pictures, pictures.keys(), [(8, 8), (4, 16), (8, 13), (13, 8)])
    assert found == {(8, 8): ["p2"], (8, 13): ["p0", "p3"], (13, 8): ["p1"]}
    plain = PictureSet(PicturesConfig(size=(8, 13)), infos, lambda position: None, {})
    assert assign_buckets(plain, ["p1"], [(8, 8), (8, 13)]) == {(8, 13): ["p1"]}


BUCKETS = {(8, 8): [f"a{i}" for i in range(7)], (8, 16): [f"b{i}" for i in range(3)], (16, 8): ["c0"]}
TOTAL = 11


def make(seed=1, batch_size=4):
    return BucketBatches(BUCKETS, seed, batch_size)


def test_batches_are_pure_and_parts_join():
    batches = make()
    for n in (0, 3, 25, 10_001, 4):
        size, keys = batches.keys(n, 0, 1)
        assert (size, keys) == make().keys(n, 0, 1)
        parts = [make().keys(n, part, 2) for part in range(2)]
        assert [part[0] for part in parts] == [size, size]
        assert keys == parts[0][1] + parts[1][1] and set(keys) <= set(BUCKETS[size])


def test_every_picture_comes_as_often_as_any_other():
    batches = make()
    for rounds in range(3):
        drawn = [batches.keys(rounds * TOTAL + n, 0, 1) for n in range(TOTAL)]
        assert collections.Counter(size for size, _ in drawn) == {size: len(keys) for size, keys in BUCKETS.items()}
        counts = collections.Counter(key for _, keys in drawn for key in keys)
        assert counts == dict.fromkeys((key for keys in BUCKETS.values() for key in keys), 4)


def test_what_is_left_of_a_run_through_a_bucket_is_carried_over():
    batches = make()
    shown = [key for n in range(3 * TOTAL) for size, keys in [batches.keys(n, 0, 1)] if size == (8, 8) for key in keys]
    runs = [shown[start : start + 7] for start in range(0, len(shown), 7)]
    assert all(sorted(run) == BUCKETS[8, 8] for run in runs) and len({tuple(run) for run in runs}) == len(runs)


def test_the_order_of_buckets_changes_with_round_and_seed():
    def order(seed, number):
        batches = make(seed)
        return [batches.keys(number * TOTAL + n, 0, 1)[0] for n in range(TOTAL)]

    assert len({tuple(order(seed, number)) for seed in (1, 2) for number in (0, 1)}) == 4

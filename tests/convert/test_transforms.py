"""Every transform does what plain indexing says, refuses other shapes, and has an exact inverse."""

import numpy as np
import pytest

from nextflow_jax.convert import transforms
from nextflow_jax.convert.transforms import (
    CONV,
    GRID,
    HEADS_BIAS,
    HEADS_IN,
    HEADS_OUT,
    LINEAR,
    POINTWISE,
    SAME,
    patch_convolution,
    split,
    squeeze,
)


def counting(*shape):
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


CASES = {
    "same": (SAME, (3, 2), (3, 2), lambda a, i, j: a[i, j]),
    "linear": (LINEAR, (3, 2), (2, 3), lambda a, i, o: a[o, i]),
    "conv": (CONV, (5, 4, 2, 3), (2, 3, 4, 5), lambda a, y, x, i, o: a[o, i, y, x]),
    "heads in": (HEADS_IN, (6, 5), (5, 2, 3), lambda a, i, h, e: a[3 * h + e, i]),
    "heads out": (HEADS_OUT, (5, 6), (2, 3, 5), lambda a, h, e, o: a[o, 3 * h + e]),
    "heads bias": (HEADS_BIAS, (6,), (2, 3), lambda a, h, e: a[3 * h + e]),
    "grid": (GRID, (6, 4), (2, 3, 4), lambda a, y, x, d: a[3 * y + x, d]),
    "pointwise": (POINTWISE, (3, 2, 1, 1), (2, 3), lambda a, i, o: a[o, i, 0, 0]),
    "squeeze": (squeeze(0, 1), (1, 1, 4), (4,), lambda a, d: a[0, 0, d]),
    "patches": (patch_convolution(2), (4, 3, 2, 2), (12, 4), lambda a, p, o: a[o, p % 3, p // 6, p // 3 % 2]),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_elements_go_where_they_should_and_come_back(case):
    transform, theirs, ours, element = CASES[case]
    array = counting(*theirs)
    (moved,) = transform.to_ours((array,), (ours,))
    expected = np.array([element(array, *index) for index in np.ndindex(*ours)]).reshape(ours)
    np.testing.assert_array_equal(moved, expected)
    np.testing.assert_array_equal(transform.to_theirs((moved,))[0], array)


@pytest.mark.parametrize(
    "transform", [LINEAR, HEADS_IN, HEADS_OUT, squeeze(0), patch_convolution(4)], ids=lambda t: t.name
)
def test_other_shapes_are_refused_even_with_as_many_elements(transform):
    with pytest.raises(ValueError):
        transform.to_ours((counting(8, 3),), ((2, 3, 4),))


def test_fused_projections_split_into_parts_and_fuse_again():
    fused, shapes = counting(18, 5), ((5, 2, 3),) * 3
    transform = split(3).then(HEADS_IN)
    parts = transform.to_ours((fused,), shapes)
    np.testing.assert_array_equal(parts[1], HEADS_IN.to_ours((fused[6:12],), shapes[:1])[0])
    np.testing.assert_array_equal(transform.to_theirs(parts)[0], fused)


def test_every_named_transform_is_tested():
    named = {value.name for value in vars(transforms).values() if isinstance(value, transforms.Transform)}
    assert named <= {case[0].name for case in CASES.values()}

"""How one array of a published checkpoint becomes ours, and exactly back: transposes, heads, grids, fused projections.

A transform takes a tuple of arrays and gives a tuple of arrays. On the way in it also gets the shapes our side
expects, which say how a fused axis splits (into heads, into rows and columns), so that tables need no sizes. Shapes
are never adjusted: an array that is not the exact image of the expected shape raises ValueError.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Arrays = tuple[Any, ...]
Shapes = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """A pair of inverse functions between their arrays and ours."""

    name: str
    to_ours: Callable[[Arrays, Shapes], Arrays]
    """(their arrays, the shapes of ours) -> our arrays."""
    to_theirs: Callable[[Arrays], Arrays]

    def then(self, second: "Transform") -> "Transform":
        """This transform first, `second` after it; both see the shapes of the final arrays."""
        return Transform(
            f"{self.name}, {second.name}",
            lambda arrays, shapes: second.to_ours(self.to_ours(arrays, shapes), shapes),
            lambda arrays: self.to_theirs(second.to_theirs(arrays)),
        )


def each(name: str, to_ours: Callable[[Any, tuple[int, ...]], Any], to_theirs: Callable[[Any], Any]) -> Transform:
    """The transform that treats every array of the tuple alike."""
    return Transform(
        name,
        lambda arrays, shapes: tuple(to_ours(array, shape) for array, shape in zip(arrays, shapes, strict=True)),
        lambda arrays: tuple(to_theirs(array) for array in arrays),
    )


def folded(name: str, order: Sequence[int], groups: Sequence[Sequence[int]]) -> Transform:
    """Their axes reordered by `order`; each then splits into the group of our axes that it stands for.

    Args:
      name: for messages.
      order: their axes in our order.
      groups: for each axis of theirs, in our order, the axes of ours it is made of (adjacent, slowest first).
    """
    back = tuple(int(axis) for axis in np.argsort(order))

    def flat(shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) != sum(map(len, groups)):
            raise ValueError(f"{name} makes {sum(map(len, groups))} dimensions")
        return tuple(math.prod(shape[axis] for axis in group) for group in groups)

    def to_ours(array: Any, shape: tuple[int, ...]) -> Any:
        theirs = tuple(flat(shape)[axis] for axis in back)
        if array.shape != theirs:
            raise ValueError(f"{name} makes {list(shape)} of {list(theirs)}")
        return array.transpose(order).reshape(shape)

    return each(name, to_ours, lambda array: array.reshape(flat(array.shape)).transpose(back))


def squeeze(*axes: int) -> Transform:
    """Drops their axes `axes`, each of length one."""
    return each(f"squeeze{axes}", lambda array, _: np.squeeze(array, axes), lambda array: np.expand_dims(array, axes))


def split(parts: int, axis: int = 0) -> Transform:
    """One array of theirs, fused along `axis`, to `parts` arrays of ours of equal length: q, k, v in one matrix."""
    return Transform(
        f"split in {parts}",
        lambda arrays, _: tuple(np.split(arrays[0], parts, axis)),
        lambda arrays: (np.concatenate(arrays, axis),),
    )


def patch_convolution(patch: int, channels: int = 3) -> Transform:
    """A convolution over patches [O, I, patch, patch] as a matrix [patch * patch * I, O] over `split_patches`."""

    def to_ours(array: Any, _: tuple[int, ...]) -> Any:
        if array.shape[1:] != (channels, patch, patch):
            raise ValueError(
                f"patches of {patch} pixels and {channels} channels need [O, {channels}, {patch}, {patch}]"
            )
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])

    def to_theirs(array: Any) -> Any:
        return array.reshape(patch, patch, channels, -1).transpose(3, 2, 0, 1)

    return each("patch convolution", to_ours, to_theirs)


SAME = each("same", lambda array, _: array, lambda array: array)
LINEAR = folded("linear", (1, 0), ((0,), (1,)))
"""[out, in] -> [in, out]."""
CONV = folded("convolution", (2, 3, 1, 0), ((0,), (1,), (2,), (3,)))
"""OIHW -> HWIO."""
HEADS_IN = folded("linear into heads", (1, 0), ((0,), (1, 2)))
"""[heads * head, in] -> [in, heads, head]."""
HEADS_OUT = folded("linear out of heads", (1, 0), ((0, 1), (2,)))
"""[out, heads * head] -> [heads, head, out]."""
HEADS_BIAS = folded("bias of heads", (0,), ((0, 1),))
"""[heads * head] -> [heads, head]."""
GRID = folded("grid", (0, 1), ((0, 1), (2,)))
"""[rows * columns, D] -> [rows, columns, D]."""
POINTWISE = squeeze(2, 3).then(LINEAR)
"""A 1 x 1 convolution [out, in, 1, 1] -> [in, out]."""

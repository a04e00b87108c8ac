"""Makes resize.npz: what torch's interpolate does to lines and pictures of the sizes in resize_arrays.py.

    PYTHONPATH=. python tests/goldens/make_resize.py        # needs torch

A line's resize is a matrix, found by resizing the unit vectors; those of one method are stored end to end.
"""

import pathlib

import numpy as np
import torch
from resize_arrays import GRIDS, features, pairs


def interpolate(images, size, method):
    """[B, C, H, W] to `size`, as the published tokenizers call it."""
    options = {} if method in ("nearest", "area") else {"align_corners": False}
    return torch.nn.functional.interpolate(images, size=size, mode=method, **options)


def matrix(n_in, n_out, method):
    """[n_out, n_in]."""
    lines = interpolate(torch.eye(n_in)[:, None, :, None], (n_out, 1), method)
    return lines[:, 0, :, 0].T.numpy()


def picture(case, method):
    """`features(case)` on the second of its grids."""
    resized = interpolate(torch.from_numpy(features(case)).permute(0, 3, 1, 2), GRIDS[case][1], method)
    return resized.permute(0, 2, 3, 1).numpy()


arrays = {
    method: np.concatenate([matrix(*pair, method).ravel() for pair in of_method])
    for method, of_method in pairs().items()
}
for method in pairs():
    for case in range(len(GRIDS)):
        arrays[f"picture/{method}/{case}"] = picture(case, method)
np.savez_compressed(pathlib.Path(__file__).with_name("resize.npz"), **arrays)

"""Reads what make_peers.py and make_peer_names.py wrote."""

import functools
import json
import pathlib

import numpy as np

from tests.goldens.peer_arrays import random_pictures, random_weights

FOLDER = pathlib.Path(__file__).parent


@functools.cache
def published_shapes(model):
    """name -> shape of a published model: "var", or a teacher of TokenFlow with or without " enhanced"."""
    entries = json.loads((FOLDER / "peer_names.json").read_text(encoding="utf-8"))[model]
    return {
        pattern.format(*numbers): tuple(shape)
        for pattern, found in entries.items()
        for shape, places in found
        for numbers in places
    }


def fake_arrays(shapes):
    """Arrays of these shapes that take no memory: one number, broadcast."""
    return {name: np.broadcast_to(np.float32(1), shape) for name, shape in shapes.items()}


@functools.cache
def tiny(model):
    """(weights, pictures [B, H, W, 3], results channels last) of one of the tiny models in plain torch layers."""
    with np.load(FOLDER / "peers.npz") as file:
        results = {name.split("/")[1]: file[name] for name in file.files if name.startswith(f"{model}/")}
    weights = random_weights(json.loads(str(results.pop("shapes"))))
    size = results["picture"].shape[-1]
    results = {name: np.moveaxis(array, 1, -1) if array.ndim == 4 else array for name, array in results.items()}
    return weights, np.moveaxis(random_pictures(size), 1, -1), results

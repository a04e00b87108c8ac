"""Published codebooks are parameters; what our quantizer keeps beside them for revival starts empty, and folds back."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.core import meta


def with_state(params: Mapping[str, Any], expected_state: Any) -> dict[str, Any]:
    """The variables {"params", "codebook"}: zeros in the shapes that the quantizer's state is expected to have."""
    shapes = meta.unbox(expected_state)
    return {"params": dict(params), "codebook": jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)}


def restored_codes(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, their codebook as it stands after revival; bit by bit the parameter where nothing was revived."""
    params = dict(meta.unbox(variables["params"]))
    table = np.asarray(params["quantizer"]["embedding"])
    shift = np.asarray(meta.unbox(variables["codebook"])["quantizer"]["shift"])
    params["quantizer"] = {**params["quantizer"], "embedding": np.where(shift == 0, table, table + shift)}
    return params

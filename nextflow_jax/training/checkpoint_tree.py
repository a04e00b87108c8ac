"""Whether the arrays of a checkpoint, of whichever tier, are those that a state is made of: names, shapes, dtypes."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from nextflow_jax.errors import UserError
from nextflow_jax.training.state import TrainState, leaves_by_name

NEW_IN_STATE = ("recent",)
"""Collections of the state that may be missing from a checkpoint, or be in it for nothing: they start anew."""


def check_tree(saved: Mapping[str, Any], abstract: TrainState, where: pathlib.Path) -> None:
    """Refuses a checkpoint that does not hold what the state wants; floating-point arrays may have another dtype.

    Args:
      saved: what has shape and dtype of the checkpoint's arrays, by name.
      abstract: the state that is wanted.
      where: the checkpoint.

    Raises:
      UserError: an array is missing, unexpected or shaped otherwise (the first is named).
    """
    wanted = leaves_by_name(abstract)
    for name in sorted(saved.keys() | wanted.keys()):
        if name.split("/")[0] in NEW_IN_STATE:
            continue
        if name not in saved:
            problem = "is needed by this configuration and missing from the checkpoint"
        elif name not in wanted:
            problem = "is in the checkpoint and not part of this configuration"
        elif not _fits(saved[name], wanted[name]):
            old, new = saved[name], wanted[name]
            problem = f"is {old.dtype}{tuple(old.shape)} in the checkpoint and {new.dtype}{tuple(new.shape)} here"
        else:
            continue
        raise UserError(f"{where}: {name} {problem}; use the configuration it was trained with, or another --workdir")


def _fits(old: Any, new: Any) -> bool:
    """Same shape, and the same dtype or another one for numbers with a fraction."""
    floating = jnp.issubdtype(old.dtype, jnp.floating) and jnp.issubdtype(new.dtype, jnp.floating)
    return tuple(old.shape) == tuple(new.shape) and (old.dtype == new.dtype or floating)

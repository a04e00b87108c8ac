"""The mean of several checkpoints of a run: often better than any of them, and free."""

import os

import jax
import numpy as np

from nextflow_jax.errors import UserError
from nextflow_jax.training.checkpoint import Restored, checkpoint_steps, restore_variables

AVERAGED = "averaged_steps"
"""Key of the meta of weights that are a mean: the steps it is of."""


def average_checkpoints(workdir: str | os.PathLike, count: int, last: int | None = None) -> Restored:
    """The mean of the parameters of `count` checkpoints up to step `last`; all else is that of the newest of them.

    Where the run keeps a moving average, it is that which is averaged. Sums are float64, one checkpoint is in memory
    beside them at a time.

    Args:
      workdir: the run's folder.
      count: how many, at least 1.
      last: the newest of them; by default the newest there is.

    Raises:
      UserError: there are not so many, or one is damaged.
    """
    if count == 1:
        return restore_variables(workdir, last)
    steps = [step for step in checkpoint_steps(workdir) if last is None or step <= last]
    if not 1 <= count <= len(steps):
        known = ", ".join(map(str, steps)) or "none"
        raise UserError(f"{workdir}: cannot average {count} checkpoints, there are {len(steps)} (steps {known})")
    newest = restore_variables(workdir, steps[-1])
    total = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), newest.params)
    for step in steps[-count:-1]:
        params = restore_variables(workdir, step).params
        total = jax.tree.map(lambda sums, leaf: np.add(sums, leaf, out=sums), total, params)
    params = jax.tree.map(lambda sums, leaf: (sums / count).astype(leaf.dtype), total, newest.params)
    return newest._replace(params=params, meta={**newest.meta, AVERAGED: steps[-count:]})

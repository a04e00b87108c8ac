"""Activation outliers: how far the residual stream's largest value stands out, by quarter of the decoder's depth.

A few dimensions that grow without bound are what breaks training in low precision first ("massive activations", arXiv
2402.17762): the loss shows it late.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from nextflow_jax.models.activations import COLLECTION, LARGEST, MEAN_SQUARE
from nextflow_jax.training.module_groups import depths
from nextflow_jax.training.task import Metrics


def outliers(variables: Mapping[str, Any], counted: Bool[Array, "B S"]) -> Metrics:
    """ "residual/rms/layers_<i>" and "residual/outlier/layers_<i>", the largest absolute value over that RMS.

    Args:
      variables: what the decoder wrote, the collection of `models.activations` among them.
      counted: positions that are looked at.

    Returns:
      Metrics of weight 1; of parts of a batch, the mean over the parts is logged.
    """
    written = variables[COLLECTION]["layers"]
    one = jnp.ones((), jnp.float32)
    positions = jnp.maximum(jnp.sum(counted), 1)
    metrics = {}
    for part, where in depths(written[LARGEST].shape[0]).items():
        largest = jnp.max(jnp.where(counted, written[LARGEST][where], 0))
        squares = jnp.where(counted, written[MEAN_SQUARE][where], 0)
        rms = jnp.sqrt(jnp.sum(squares) / (positions * squares.shape[0]))
        metrics[f"residual/rms/{part}"] = (rms, one)
        metrics[f"residual/outlier/{part}"] = (largest / jnp.maximum(rms, jnp.finfo(jnp.float32).tiny), one)
    return metrics

"""Norms of gradients, updates and parameters by group of modules and by depth: where in the model something happens."""

import collections
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from nextflow_jax.training.task import Metrics

GROUPS: tuple[tuple[str, str], ...] = (
    ("discriminator", r"^discriminator/"),
    ("pixel_encoder", r"^pixel_encoder/"),
    ("pixel_decoder", r"^pixel_decoder/"),
    ("semantic_encoder", r"^semantic_encoder/"),
    ("semantic_decoder", r"^semantic_(decoder|head)/"),
    ("bottleneck", r"^(pixel|semantic)_(projection|expansion)/"),
    ("vision", r"^(vision|pool|image_projection)/"),
    ("text", r"^(text|text_projection)/"),
    ("connector", r"^embedding/connector/"),
    ("embedding", r"^embedding/"),
    ("head", r"^head/"),
    ("norms", r"(^|/)\w*norm/"),
    ("attention", r"^layers/attention/"),
    ("mlp", r"^layers/mlp/"),
    ("other", r""),
)
"""(group, regular expression searched in "a/b/c" names of parameters); the first that matches counts."""

STACKED = r"^layers/"
"""Parameters whose first dimension counts the decoder's layers."""
NUM_DEPTHS = 4


def group_of(name: str) -> str:
    """The group of a parameter."""
    return next(group for group, pattern in GROUPS if re.search(pattern, name))


def depths(layers: int) -> dict[str, slice]:
    """Consecutive layers as equal parts as can be: "layers_1" to "layers_4", fewer where there are fewer layers."""
    parts = min(NUM_DEPTHS, layers)
    bounds = [round(layers * i / parts) for i in range(parts + 1)]
    return {f"layers_{i}": slice(*bounds[i - 1 : i + 1]) for i in range(1, parts + 1)}


def norms(name: str, tree: Any) -> Metrics:
    """L2 norms of a tree like the parameters, in float32: of all, of each group, of each part of the decoder's depth.

    Args:
      name: of the metrics: "<name>", "<name>/<group>", "<name>/layers_<i>".
      tree: nested dictionaries of arrays.

    Returns:
      Metrics of weight 1.
    """
    squares: dict[str, list[jax.Array]] = collections.defaultdict(list)
    for path, leaf in traverse_util.flatten_dict(tree, sep="/").items():
        square = jnp.square(leaf.astype(jnp.float32))
        if re.search(STACKED, path):
            of_layers = jnp.sum(square, axis=range(1, leaf.ndim))
            total = jnp.sum(of_layers)
            for part, where in depths(leaf.shape[0]).items():
                squares[f"{name}/{part}"].append(jnp.sum(of_layers[where]))
        else:
            total = jnp.sum(square)
        squares[name].append(total)
        squares[f"{name}/{group_of(path)}"].append(total)
    one = jnp.ones((), jnp.float32)
    return {key: (jnp.sqrt(jnp.sum(jnp.stack(parts))), one) for key, parts in squares.items()}

"""Trees of variables as flat dictionaries {"params/block/kernel": array}, and back, strictly."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from flax.core import meta

from nextflow_jax.errors import UserError

SEPARATOR = "/"


def flatten_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """A flat dictionary of a nested one, names joined by "/", sorted; boxes of logical axis names are taken off."""
    flat = traverse_util.flatten_dict(meta.unbox(_plain(variables)), sep=SEPARATOR)
    return {name: flat[name] for name in sorted(flat)}


def unflatten_variables(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dictionary of a flat one."""
    return traverse_util.unflatten_dict(dict(flat), sep=SEPARATOR)


def merge(flat: Mapping[str, Any], expected: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The arrays of `flat` as a tree of exactly the structure, shapes and dtypes of `expected`.

    Args:
      flat: arrays by flat name, as read from a file.
      expected: a nested tree of arrays or `jax.ShapeDtypeStruct`s, boxed or not.
      source: where `flat` came from; begins the message.

    Raises:
      UserError: every missing, unexpected, mis-shaped and mistyped array, all in one message.
    """
    wanted = flatten_variables(expected)
    faults = [f"missing {name} {_describe(wanted[name])}" for name in wanted if name not in flat]
    faults += [f"unexpected {name} {_describe(flat[name])}" for name in sorted(flat) if name not in wanted]
    for name in wanted:
        if name in flat and _describe(flat[name]) != _describe(wanted[name]):
            faults.append(f"{name} is {_describe(flat[name])}, the configuration asks for {_describe(wanted[name])}")
    if faults:
        raise UserError(f"{source} does not fit its configuration: " + "; ".join(faults))
    return unflatten_variables({name: flat[name] for name in wanted})


def _plain(tree: Any) -> Any:
    """Mappings of any kind (FrozenDict) as dictionaries, which is what flax's traversal walks."""
    return {name: _plain(value) for name, value in tree.items()} if isinstance(tree, Mapping) else tree


def _describe(array: Any) -> str:
    return f"{np.dtype(array.dtype).name}{list(array.shape)}"

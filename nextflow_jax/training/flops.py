"""Counting model FLOPs: the matrix products and convolutions of a traced function, scans multiplied out.

XLA's own count sees the body of a loop once and includes rematerialisation; the MFU wants neither.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

TRAINING_FACTOR = 3
"""Forward and backward together, in forwards: the backward computes two products for each of the forward's."""


def forward_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs (two a multiply-add) of the products in `function(*arguments)`; arguments may be abstract."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _dot_general(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        else:
            inner = [_count(sub) for sub in _inner_jaxprs(equation)]
            repeats = equation.params["length"] if name == "scan" else 1
            total += repeats * (max(inner, default=0.0) if name == "cond" else sum(inner))
    return total


def _dot_general(equation: Any) -> float:
    (contracting, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval, equation.outvars[0].aval
    return 2.0 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracting)


def _convolution(equation: Any) -> float:
    kernel, out = equation.invars[1].aval, equation.outvars[0].aval
    out_channels = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(out.shape) * math.prod(kernel.shape) / out_channels


def _inner_jaxprs(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(item, "jaxpr"):
                yield item.jaxpr

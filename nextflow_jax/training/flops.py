"""Counting FLOPs: the matrix products and convolutions of a traced function, loops of known length multiplied out.

XLA's own count sees the body of a loop once, and nothing of kernels.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

TRAINING_FACTOR = 3
"""Forward and backward together, in forwards: the backward computes two products for each of the forward's."""


class TracedFlops(NamedTuple):
    """FLOPs (two a multiply-add) over all devices."""

    products: float
    """Of matrix products and convolutions that XLA computes."""
    kernels: float
    """Of those in Pallas kernels, every block of the grid counted, also where the kernel skips it."""


def forward_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs (two a multiply-add) of the products in `function(*arguments)`; arguments may be abstract."""
    return sum(traced_flops(jax.make_jaxpr(function)(*arguments)))


def traced_flops(jaxpr: Any) -> TracedFlops:
    """FLOPs of a traced program: of a training step, those of rematerialisation are among them.

    Of a condition the larger branch counts; the body of a `while` whose length is data counts once.
    """
    return _count(jaxpr.jaxpr)


def _count(jaxpr: Any) -> TracedFlops:
    products = kernels = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            products += _dot_general(equation)
        elif name == "conv_general_dilated":
            products += _convolution(equation)
        else:
            inner = [_count(sub) for sub in _inner_jaxprs(equation)]
            repeats, chosen = _repeats(equation), max if name == "cond" else sum
            of_products = repeats * chosen([one.products for one in inner] or [0.0])
            of_kernels = repeats * chosen([one.kernels for one in inner] or [0.0])
            is_kernel = name == "pallas_call"
            products += 0.0 if is_kernel else of_products
            kernels += of_kernels + (of_products if is_kernel else 0.0)
    return TracedFlops(products, kernels)


def _repeats(equation: Any) -> int:
    """How often what is in an equation is computed, over all devices."""
    parameters = equation.params
    match equation.primitive.name:
        case "scan":
            return parameters["length"]
        case "shard_map":
            return math.prod(parameters["mesh"].shape[axis] for axis in parameters["newly_manual_axes"])
        case "pallas_call":
            return math.prod(parameters["grid_mapping"].grid)
    return 1


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

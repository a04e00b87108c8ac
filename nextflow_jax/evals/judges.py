"""The metrics that need a network with published weights, when its files are given: LPIPS and the FID's features."""

import dataclasses
import os
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from nextflow_jax.convert.lpips import load_lpips
from nextflow_jax.errors import UserError
from nextflow_jax.evals.config import TokenizerEvaluationConfig
from nextflow_jax.evals.inception import load_inception
from nextflow_jax.vision.codec import images_to_float
from nextflow_jax.vision.lpips import lpips_distance

FILES = {"lpips": ("lpips_vgg", "lpips_linear"), "rfid": ("inception",)}
"""Metric -> the fields of the configuration that name its weights."""

Distance = Callable[[UInt8[np.ndarray, "B H W 3"], UInt8[np.ndarray, "B H W 3"]], Float[np.ndarray, "B"]]
Features = Callable[[UInt8[np.ndarray, "B H W 3"]], Float[np.ndarray, "B F"]]


@dataclasses.dataclass(frozen=True, eq=False)
class Judges:
    """What was loaded; None where the configuration names no weights."""

    lpips: Distance | None = None
    features: Features | None = None
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Metric -> why it is not measured, one line."""


def load_judges(config: TokenizerEvaluationConfig) -> Judges:
    """The networks whose weights the configuration names.

    Raises:
      UserError: a file that is not there (all of them are named), is unreadable, or holds something else.
    """
    check_files(config)
    left_out = {
        metric: f"{metric} left out: it needs {' and '.join(f'config.evaluation.{field}' for field in fields)}"
        for metric, fields in FILES.items()
        if not all(getattr(config, field) for field in fields)
    }
    return Judges(
        None if "lpips" in left_out else _lpips(config),
        None if "rfid" in left_out else load_inception(config.inception, config.batch_size),
        left_out,
    )


def check_files(config: TokenizerEvaluationConfig) -> None:
    """Asks for every weights file that is named and not there.

    Raises:
      UserError: names all of them.
    """
    named = {field: getattr(config, field) for fields in FILES.values() for field in fields}
    absent = [
        f"config.evaluation.{field} = {path!r}" for field, path in named.items() if path and not os.path.exists(path)
    ]
    if absent:
        raise UserError(f"{'; '.join(absent)}: no such file; download the weights, or leave the metric out with ''")


def _lpips(config: TokenizerEvaluationConfig) -> Distance:
    """LPIPS in chunks of one length, so that each size of pictures compiles once."""
    params = load_lpips(config.lpips_vgg, config.lpips_linear)
    chunk = config.batch_size
    measure = jax.jit(lambda params, a, b: lpips_distance(params, images_to_float(a), images_to_float(b)))

    def distance(
        originals: UInt8[np.ndarray, "B H W 3"], copies: UInt8[np.ndarray, "B H W 3"]
    ) -> Float[np.ndarray, "B"]:
        parts = []
        for start in range(0, len(originals), chunk):
            index = np.arange(start, start + chunk)
            index = np.where(index < len(originals), index, start)
            parts.append(np.asarray(measure(params, jnp.asarray(originals[index]), jnp.asarray(copies[index]))))
        return np.concatenate(parts)[: len(originals)]

    return distance

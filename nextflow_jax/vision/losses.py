"""The tokenizer's loss: a weighted sum of named terms, one row each in one table.

    loss, metrics = tokenizer_loss(output, images, teacher_features, TokenizerLossConfig(...))

`metrics` maps a name to (sum, weight): every active term under "loss/<term>", the total under "loss/total", PSNR (in
training that of what the decoder saw: dropped scales lower it), the codebook's statistics. A new term is a field of
`TokenizerLossConfig` and a row of `TERMS`; what it needs beside the tokenizer's output becomes a field of `LossInputs`.
The adversarial terms, which need a second player's parameters, are in nextflow_jax/vision/adversarial.py.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from nextflow_jax.config import Fault
from nextflow_jax.vision.lpips import lpips_distance
from nextflow_jax.vision.tokenizer import TokenizerOutput

SumWeight = tuple[Float[Array, ""], Float[Array, ""]]

PEAK_TO_PEAK = 2.0
"""Range of image values, [-1, 1]."""
MSE_FLOOR = 1e-8
"""Caps the PSNR of a perfect picture (at 86 dB)."""
NORM_FLOOR = 1e-12


@dataclasses.dataclass(frozen=True)
class TokenizerLossConfig:
    """The weight of every term; 0 switches a term off."""

    l1: float = 0.0
    l2: float = 1.0
    lpips: float = 0.0
    """Of the perceptual distance, which needs published weights (nextflow_jax/vision/lpips.py)."""
    commitment: float = 0.25
    vq: float = 0.0
    """Pulls codes to the features; for a codebook with `learned="gradient"`, and needed by it (VAR: 1.0)."""
    entropy_sample: float = 0.0
    """Makes each vector's choice of a code decided; needs `quantizer.entropy_temperature`."""
    entropy_batch: float = 0.0
    """Makes the batch use all codes alike; needs `quantizer.entropy_temperature`."""
    distillation_cosine: float = 0.1
    distillation_l2: float = 0.1

    def faults(self) -> Iterator[Fault]:
        """The rules these weights break."""
        for field in dataclasses.fields(self):
            weight = getattr(self, field.name)
            if weight < 0:
                yield Fault(field.name, weight, "must not be negative", "use 0 to switch the term off")
        if self.l1 == 0 and self.l2 == 0:
            yield Fault("l2", self.l2, "l1 or l2 must have a weight, or pictures are not learned", "use 1.0")

    @property
    def needs_teacher(self) -> bool:
        """Whether any active term compares with the teacher's features."""
        return self.distillation_cosine > 0 or self.distillation_l2 > 0


class LossInputs(NamedTuple):
    """What terms may look at."""

    output: TokenizerOutput
    images: Float[Array, "B H W 3"]
    teacher_features: Float[Array, "B Y X D"] | None
    lpips: Any


def tokenizer_loss(
    output: TokenizerOutput,
    images: Float[Array, "B H W 3"],
    teacher_features: Float[Array, "B Y X D"] | None,
    config: TokenizerLossConfig,
    lpips: Any = None,
) -> tuple[Float[Array, ""], dict[str, SumWeight]]:
    """The weighted sum of the active terms' means, and the metrics.

    Args:
      output: of the tokenizer's forward on `images`.
      images: float32 in [-1, 1].
      teacher_features: the frozen teacher's patch features of `images`; may be None when no term needs them.
      config: the terms' weights.
      lpips: parameters of `lpips_distance`; may be None when that term is off.

    Returns:
      (loss, metrics), metrics as (sum, weight) pairs.
    """
    inputs = LossInputs(output, images, teacher_features, lpips)
    active = {name: weight for name, weight in dataclasses.asdict(config).items() if weight > 0}
    values = {name: TERMS[name](inputs) for name in active}
    loss = sum(weight * values[name][0] / values[name][1] for name, weight in active.items())
    metrics = {f"loss/{name}": value for name, value in values.items()}
    metrics["loss/total"] = loss, jnp.ones((), jnp.float32)
    metrics["psnr"] = _over_images(psnr(output.reconstruction, images))
    return loss, {**metrics, **output.stats}


def psnr(reconstruction: Float[Array, "B H W 3"], images: Float[Array, "B H W 3"]) -> Float[Array, "B"]:
    """Peak signal-to-noise ratio of each picture in dB, both sides in [-1, 1] (reconstructions are clamped to it)."""
    error = jnp.clip(reconstruction, -1.0, 1.0) - images
    mse = jnp.mean(jnp.square(error), axis=(1, 2, 3))
    return 10 * jnp.log10(PEAK_TO_PEAK**2 / jnp.maximum(mse, MSE_FLOOR))


def _l1(inputs: LossInputs) -> SumWeight:
    return _over_images(jnp.mean(jnp.abs(inputs.output.reconstruction - inputs.images), axis=(1, 2, 3)))


def _l2(inputs: LossInputs) -> SumWeight:
    return _over_images(jnp.mean(jnp.square(inputs.output.reconstruction - inputs.images), axis=(1, 2, 3)))


def _lpips(inputs: LossInputs) -> SumWeight:
    return _over_images(lpips_distance(inputs.lpips, inputs.output.reconstruction, inputs.images))


def _commitment(inputs: LossInputs) -> SumWeight:
    return inputs.output.commitment


def _vq(inputs: LossInputs) -> SumWeight:
    return inputs.output.vq


def _entropy_sample(inputs: LossInputs) -> SumWeight:
    return inputs.output.entropy_sample


def _entropy_batch(inputs: LossInputs) -> SumWeight:
    return inputs.output.entropy_batch


def _distillation_cosine(inputs: LossInputs) -> SumWeight:
    similarity = jnp.sum(_unit(inputs.output.semantic) * _unit(inputs.teacher_features), axis=-1)
    return _over_images(jnp.mean(1 - similarity, axis=(1, 2)))


def _distillation_l2(inputs: LossInputs) -> SumWeight:
    error = inputs.output.semantic - inputs.teacher_features.astype(jnp.float32)
    return _over_images(jnp.mean(jnp.square(error), axis=(1, 2, 3)))


def _unit(vectors: Float[Array, "B Y X D"]) -> Float[Array, "B Y X D"]:
    vectors = vectors.astype(jnp.float32)
    norm = jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True) + NORM_FLOOR)
    return vectors / norm


def _over_images(values: Float[Array, "B"]) -> SumWeight:
    return jnp.sum(values), jnp.asarray(values.shape[0], jnp.float32)


TERMS: dict[str, Callable[[LossInputs], SumWeight]] = {
    "l1": _l1,
    "l2": _l2,
    "lpips": _lpips,
    "commitment": _commitment,
    "vq": _vq,
    "entropy_sample": _entropy_sample,
    "entropy_batch": _entropy_batch,
    "distillation_cosine": _distillation_cosine,
    "distillation_l2": _distillation_l2,
}
"""Term -> (sum over images, number of images); names are the fields of `TokenizerLossConfig`."""

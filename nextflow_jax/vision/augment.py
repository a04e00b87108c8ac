"""Differentiable augmentation of what a discriminator sees, real and fake alike (Zhao et al., arXiv 2006.10738).

A discriminator memorises a small data set and then teaches nothing; shown every picture shifted and recoloured it
cannot. The same transform acts on fakes, and gradients flow through it to the generator.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

BRIGHTNESS = 0.5
SATURATION = (0.0, 2.0)
CONTRAST = (0.5, 1.5)
SHIFT = 8
"""Pictures move by up to an eighth of their sides, zeros coming in."""


def augment(images: Float[Array, "B H W 3"], key: Key[Array, ""]) -> Float[Array, "B H W 3"]:
    """Each picture, values in [-1, 1] before, with brightness, saturation and contrast of its own, and shifted.

    The same key gives the same transforms: picture i of the fakes is changed as picture i of the reals.
    """
    brightness_key, saturation_key, contrast_key, rows_key, columns_key = jax.random.split(key, 5)
    batch, height, width, _ = images.shape

    def draw(key: Array, low: float, high: float) -> Array:
        return jax.random.uniform(key, (batch, 1, 1, 1), minval=low, maxval=high)

    x = images + draw(brightness_key, -BRIGHTNESS, BRIGHTNESS)
    grey = jnp.mean(x, axis=3, keepdims=True)
    x = grey + (x - grey) * draw(saturation_key, *SATURATION)
    mean = jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    x = mean + (x - mean) * draw(contrast_key, *CONTRAST)
    rows = _shifts(rows_key, batch, height)
    columns = _shifts(columns_key, batch, width)
    return jax.vmap(_shift)(x, rows, columns)


def _shifts(key: Key[Array, ""], batch: int, side: int) -> Int[Array, "B"]:
    most = side // SHIFT
    return jax.random.randint(key, (batch,), -most, most + 1)


def _shift(image: Float[Array, "H W 3"], down: Int[Array, ""], right: Int[Array, ""]) -> Float[Array, "H W 3"]:
    height, width, _ = image.shape
    rows, columns = height // SHIFT, width // SHIFT
    padded = jnp.pad(image, ((rows, rows), (columns, columns), (0, 0)))
    return jax.lax.dynamic_slice(padded, (rows - down, columns - right, 0), image.shape)

"""The decoder's weights as sampling reads them: in the compute dtype, once, instead of converted at every step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.sampling.steps import ScaleFeatures

READ_IN_FLOAT32 = ("scale", "scale_count_gain")
"""Parameters that the decoder computes with in float32 whatever the compute dtype: norms and one gain."""


class Weights(NamedTuple):
    """Arrays the phases read."""

    decoder: Any
    features: ScaleFeatures | None
    """None with residual inputs."""


def place_weights(config: DecoderConfig, variables: Any, features: ScaleFeatures | None) -> Weights:
    """The weights on the device, in the dtype that products take them in: half the bytes of float32 parameters.

    The decoder would convert them to that dtype in every step, so nothing it computes changes.

    Args:
      config: of the decoder.
      variables: of the decoder, unboxed; arrays of NumPy or JAX.
      features: what makes accumulated inputs.
    """

    def convert(path: tuple[Any, ...], array: Any) -> Any:
        in_float32 = path[-1].key in READ_IN_FLOAT32 or jnp.dtype(array.dtype).itemsize <= config.compute_dtype.itemsize
        return array if in_float32 else array.astype(config.compute_dtype)

    return jax.device_put(Weights(jax.tree_util.tree_map_with_path(convert, variables), features))

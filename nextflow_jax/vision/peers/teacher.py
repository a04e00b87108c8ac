"""TokenFlow's semantic encoders: a picture to one feature vector a patch, as its teacher defines it."""

import dataclasses
from collections.abc import Iterator

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from nextflow_jax.config import Fault
from nextflow_jax.vision.peers.tower import Tower, TowerConfig
from nextflow_jax.vision.peers.vitamin import MbConvStem, MbConvStemConfig
from nextflow_jax.vision.transformer import partitioned
from nextflow_jax.vision.vit import split_patches


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """How a picture becomes patch vectors, and the tower over them."""

    tower: TowerConfig
    patch: int = 16
    """Pixels on the side of a patch; rows and columns of pixels that fill no patch are left out."""
    patch_bias: bool = True
    stem: MbConvStemConfig = MbConvStemConfig((), ())
    """Convolutions that make the patch vectors, when it has stages; otherwise patches are cut."""
    normalised: bool = True
    """Pictures are normalised by the mean and spread that the weights hold."""

    def faults(self) -> Iterator[Fault]:
        """The rules this configuration breaks."""
        stride = 2 ** (len(self.stem.channels) + 2)
        if self.stem.channels and self.patch != stride:
            yield Fault("patch", self.patch, f"{len(self.stem.channels)} stages make patches of {stride}", "use that")


class Teacher(nn.Module):
    """Pictures in [-1, 1] to patch features."""

    config: TeacherConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B Y X D"]:
        config = self.config
        if config.normalised:
            mean = self.param("mean", nn.initializers.zeros, (3,))
            spread = self.param("spread", nn.initializers.ones, (3,))
            images = (jnp.clip((images + 1) / 2, 0.0, 1.0) - mean) / spread
        if config.stem.channels:
            patches = MbConvStem(config.stem, config.tower.width, self.dtype, name="stem")(images)
        else:
            patches = self._cut(images.astype(self.dtype))
        return Tower(config.tower, self.dtype, name="tower")(patches)

    def _cut(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B Y X D"]:
        height, width = (side - side % self.config.patch for side in images.shape[1:3])
        return nn.Dense(
            self.config.tower.width,
            use_bias=self.config.patch_bias,
            dtype=self.dtype,
            kernel_init=partitioned(nn.initializers.lecun_normal(), "patch", "embed"),
            bias_init=partitioned(nn.initializers.zeros, "embed"),
            name="patch_embedding",
        )(split_patches(images[:, :height, :width], self.config.patch))

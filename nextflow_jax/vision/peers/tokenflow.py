"""TokenFlow (arXiv 2412.03069) as it was published: teacher and CNN, two codebooks under one index, two decoders.

    tokenflow = TokenFlow(published("siglip_384", enhanced=True))
    codes = tokenflow.apply(variables, images, method="encode")               # [B, N], all scales
    pictures, semantic = tokenflow.apply(variables, codes, method="decode")   # [B, H, W, 3], [B, Y, X, D]

Weights come from nextflow_jax/convert/tokenflow.py. It differs from our VisionTokenizer (nextflow_jax/vision/
tokenizer.py) in its teachers, in task layers around the quantizer, in its semantic decoder's class token, and, with
siglip_384, in a pixel branch that works on a resized picture.
"""

import dataclasses
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nextflow_jax.config import Fault, choose
from nextflow_jax.resize import resize_grid
from nextflow_jax.scales import ScaleSchedule, make_schedule
from nextflow_jax.vision.cnn import PixelConfig, PixelDecoder, PixelEncoder
from nextflow_jax.vision.codebook import QuantizerConfig
from nextflow_jax.vision.peers.teacher import Teacher, TeacherConfig
from nextflow_jax.vision.peers.tower import Tower, TowerConfig
from nextflow_jax.vision.peers.vitamin import MbConvStemConfig
from nextflow_jax.vision.quantizer import Quantizer
from nextflow_jax.vision.transformer import dense


@dataclasses.dataclass(frozen=True)
class TokenFlowConfig:
    """The architecture of one published checkpoint."""

    teacher: TeacherConfig
    semantic_decoder: TowerConfig
    pixel: PixelConfig
    quantizer: QuantizerConfig
    size: int
    """Side of the square pictures it takes and gives, in pixels."""
    ladder: tuple[int, ...]
    """Sides of the square grids of codes."""
    teacher_width: int
    """Width of the features that the semantic decoder predicts."""
    dtype: str = "float32"
    """Of the computation in encoders and decoders; parameters and quantisation are float32."""

    @property
    def schedule(self) -> ScaleSchedule:
        """The grids of codes of a picture."""
        return make_schedule((self.ladder[-1], self.ladder[-1]), self.ladder)

    @property
    def pixel_size(self) -> int:
        """Side of the picture that the pixel branch sees."""
        return self.pixel.stride * self.ladder[-1]

    def faults(self) -> Iterator[Fault]:
        """The rules this configuration breaks."""
        patches = self.size // self.teacher.patch
        if patches != self.ladder[-1]:
            rule = f"its last entry must be size // teacher.patch = {patches}"
            yield Fault("ladder", self.ladder, rule, "change it, or size")


class TokenFlow(nn.Module):
    """Pictures to codes and back. Pictures are float32 [B, size, size, 3] in [-1, 1]."""

    config: TokenFlowConfig

    def setup(self) -> None:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        width, decoder_width = config.teacher.tower.width, config.semantic_decoder.width
        self.semantic_encoder = Teacher(config.teacher, dtype)
        self.semantic_projection_in = dense(width, ("embed", None), jnp.float32)
        self.semantic_projection_out = dense(config.quantizer.semantic_dim, ("embed", "code"), jnp.float32)
        self.pixel_encoder = PixelEncoder(config.pixel, dtype)
        self.pixel_projection = dense(config.quantizer.pixel_dim, ("conv_in", "code"), jnp.float32)
        self.quantizer = Quantizer(config.quantizer)
        self.semantic_expansion = dense(decoder_width, ("code", "embed"), dtype)
        self.semantic_decoder = Tower(config.semantic_decoder, dtype)
        self.semantic_head_in = dense(decoder_width, ("embed", None), jnp.float32)
        self.semantic_head_out = dense(config.teacher_width, ("embed", None), jnp.float32)
        self.pixel_expansion = dense(config.pixel.latent, ("code", "conv_out"), dtype)
        self.pixel_decoder = PixelDecoder(config.pixel, dtype)

    def __call__(
        self, images: Float[Array, "B H W 3"]
    ) -> tuple[Float[Array, "B H W 3"], Float[Array, "B Y X D"], Int[Array, "B N"]]:
        """(reconstruction, predicted teacher features, codes)."""
        codes = self.encode(images)
        return *self.decode(codes), codes

    def encode_features(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B Y X C"]:
        """Continuous features on the code grid, semantic half first; float32."""
        hidden = jnp.tanh(self.semantic_projection_in(self.semantic_encoder(images)))
        semantic = self.semantic_projection_out(hidden)
        pixel = self.pixel_projection(self.pixel_encoder(_resize(images, self.config.pixel_size)))
        return jnp.concatenate([semantic, pixel], axis=-1)

    def encode(self, images: Float[Array, "B H W 3"]) -> Int[Array, "B N"]:
        """Codes of all scales, coarse to fine."""
        codes, _ = self.quantizer.encode(self.encode_features(images), self.config.schedule)
        return codes

    def decode(self, codes: Int[Array, "B N"]) -> tuple[Float[Array, "B H W 3"], Float[Array, "B Y X D"]]:
        """Pictures (not clamped) and the teacher's features as predicted from codes, float32."""
        features = self.quantizer.accumulate(codes, self.config.schedule)[-1]
        return self.decode_features(features), self.decode_semantic(features)

    def decode_features(self, features: Float[Array, "B Y X C"]) -> Float[Array, "B H W 3"]:
        """Pictures of (accumulated) features, float32, not clamped."""
        expanded = self.pixel_expansion(features[..., self.config.quantizer.semantic_dim :])
        return _resize(self.pixel_decoder(expanded), self.config.size)

    def decode_semantic(self, features: Float[Array, "B Y X C"]) -> Float[Array, "B Y X D"]:
        """The teacher's patch features as predicted from the semantic half, float32."""
        expanded = self.semantic_expansion(features[..., : self.config.quantizer.semantic_dim])
        return self.semantic_head_out(jnp.tanh(self.semantic_head_in(self.semantic_decoder(expanded))))


def _resize(images: Float[Array, "B H W 3"], size: int) -> Float[Array, "B U V 3"]:
    """Bicubic, without antialiasing, as TokenFlow resizes for its 27 x 27 grid; the same picture where sizes agree."""
    with jax.default_matmul_precision("highest"):
        return resize_grid(images, (size, size), "bicubic")


_CLIP = TeacherConfig(
    TowerConfig(
        width=768, layers=12, heads=12, mlp_width=3072, activation="quick_gelu", epsilon=1e-5,
        class_token=True, grid=(14, 14), norm_before=True, norm_after=True,
    ),
    patch_bias=False,
    normalised=False,
)  # fmt: skip
_VITAMIN = TeacherConfig(
    TowerConfig(width=1152, layers=32, heads=16, mlp_width=2304, gated=True), stem=MbConvStemConfig((192, 384), (2, 4))
)
_SIGLIP = TeacherConfig(
    # so400m has 27 layers; TokenFlow takes what goes into the last one
    TowerConfig(width=1152, layers=26, heads=16, mlp_width=4304, activation="gelu_tanh", grid=(27, 27)),
    patch=14,
)

TEACHERS: dict[str, tuple[TeacherConfig, int, tuple[int, ...], int]] = {
    "clipb_224": (_CLIP, 224, (1, 2, 4, 6, 8, 10, 12, 14), 512),
    "vitamin_xlarge_256": (_VITAMIN, 256, (1, 2, 4, 6, 8, 10, 12, 14, 16), 1152),
    "siglip_384": (_SIGLIP, 384, (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22, 27), 1152),
}
"""Published name -> (semantic encoder, picture side, grids, width of the features that are predicted)."""


def published(teacher: str, enhanced: bool = False, codes: int = 32768) -> TokenFlowConfig:
    """The configuration of a published checkpoint.

    Args:
      teacher: a key of TEACHERS.
      enhanced: the pixel decoder with twice the channels and depth.
      codes: size of the codebook.

    Raises:
      UserError: an unknown teacher.
    """
    encoder, size, ladder, features = choose("TokenFlow's teacher", teacher, TEACHERS)
    width = encoder.tower.width
    return TokenFlowConfig(
        teacher=encoder,
        semantic_decoder=TowerConfig(
            width=width, layers=3, heads=12, mlp_width=4 * width, key_bias=False,
            class_token=True, grid=(ladder[-1], ladder[-1]), norm_after=True,
        ),
        pixel=PixelConfig(
            stem=1, multipliers=(1, 1, 2, 2, 4), encoder_base=128, encoder_blocks=2,
            decoder_base=256 if enhanced else 128, decoder_blocks=5 if enhanced else 3,
            latent=256, groups=32, attention=True,
        ),
        quantizer=QuantizerConfig(codes, semantic_dim=32, pixel_dim=8, normalise="codes", learned="gradient"),
        size=size,
        ladder=ladder,
        teacher_width=features,
    )  # fmt: skip

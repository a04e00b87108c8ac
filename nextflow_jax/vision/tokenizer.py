"""The vision tokenizer: semantic and pixel branch, dual-codebook quantizer, semantic and pixel decoder.

    images --ViT--> semantic half --+               +--semantic decoder--> teacher's patch features (distillation)
           --CNN--> pixel half    --+--quantizer----+--pixel decoder-----> images

API for training (see nextflow_jax/vision/losses.py for the loss):

    tokenizer = VisionTokenizer(config)
    variables = tokenizer.init(key, images, train=False)                              # collections params, codebook
    output, new = tokenizer.apply(variables, images, train=True, key=key, mutable=["codebook"])
    loss, metrics = tokenizer_loss(output, images, teacher_features, loss_config)     # new["codebook"] replaces the old

Images are float32 [B, H, W, 3] in [-1, 1], of any size that `config.family` lists. A single codebook
(`quantizer.semantic_dim` = 0, the VQGAN baseline) leaves the upper row out. Source: recipe section 2 (TokenFlow,
arXiv 2412.03069; NextFlow, arXiv 2601.02204).
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from nextflow_jax.config import Fault
from nextflow_jax.errors import UserError
from nextflow_jax.scales import ScaleSchedule, ScheduleFamily
from nextflow_jax.vision.cnn import PixelConfig, PixelDecoder, PixelEncoder
from nextflow_jax.vision.codebook import QuantizerConfig
from nextflow_jax.vision.conv_layers import convolution
from nextflow_jax.vision.quantizer import Quantizer, SelfCorrection
from nextflow_jax.vision.row_split import join_rows
from nextflow_jax.vision.transformer import Transformer, TransformerConfig, dense
from nextflow_jax.vision.vit import ViT, ViTConfig

DECODE_FROM = ("pixel", "both")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class VisionTokenizerConfig:
    """The tokenizer's architecture; with its variables it is all that a bundle needs."""

    family: ScheduleFamily = ScheduleFamily()
    vit: ViTConfig = ViTConfig()
    pixel: PixelConfig = PixelConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    semantic_decoder: TransformerConfig = TransformerConfig(layers=1)
    teacher_width: int = 96
    """Width of the teacher's patch features, which the semantic decoder predicts."""
    decode_from: str = "pixel"
    """Which half of the codes the pixel decoder sees: "pixel" (the recipe) or "both"."""
    dtype: str = "float32"
    """Of the computation in encoders and decoders; parameters and quantisation are float32."""

    def faults(self) -> Iterator[Fault]:
        """The rules this configuration breaks."""
        strides = {"vit.patch": self.vit.patch} if self.quantizer.dual else {}
        for name, stride in {**strides, "pixel": self.pixel.stride}.items():
            if stride != self.family.stride:
                rule = f"its stride must be the family's, {self.family.stride}"
                yield Fault(name, stride, rule, "change it, or family.stride")
        if self.decode_from not in DECODE_FROM:
            yield Fault("decode_from", self.decode_from, f"must be one of {DECODE_FROM}", "use 'pixel'")
        if self.dtype not in DTYPES:
            yield Fault("dtype", self.dtype, f"must be one of {DTYPES}", "use 'float32'")


class TokenizerOutput(NamedTuple):
    """What the tokenizer's forward gives the losses."""

    reconstruction: Float[Array, "B H W 3"]
    """float32, meant for [-1, 1], not clamped."""
    semantic: Float[Array, "B Y X D"] | None
    """The semantic decoder's prediction of the teacher's patch features, float32; None with a single codebook."""
    codes: Int[Array, "B N"]
    commitment: tuple[Float[Array, ""], Float[Array, ""]]
    """(sum, weight)."""
    stats: dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
    """Codebook metrics, name to (sum, weight)."""
    vq: tuple[Float[Array, ""], Float[Array, ""]] | None = None
    """(sum, weight); see `Quantised`, as for the next two."""
    entropy_sample: tuple[Float[Array, ""], Float[Array, ""]] | None = None
    entropy_batch: tuple[Float[Array, ""], Float[Array, ""]] | None = None


class VisionTokenizer(nn.Module):
    """Pictures to codes and back; also the parts of that, as methods for `apply(..., method=...)`."""

    config: VisionTokenizerConfig

    def setup(self) -> None:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        if config.quantizer.dual:
            self.semantic_encoder = ViT(config.vit, dtype)
            self.semantic_projection = dense(config.quantizer.semantic_dim, ("embed", "code"), jnp.float32)
            self.semantic_expansion = dense(config.semantic_decoder.width, ("code", "embed"), dtype)
            self.semantic_decoder = Transformer(config.semantic_decoder, dtype)
            self.semantic_head = dense(config.teacher_width, ("embed", None), jnp.float32)
        self.pixel_encoder = PixelEncoder(config.pixel, dtype)
        self.pixel_projection = _cell_map(config.pixel, config.quantizer.pixel_dim, ("conv_in", "code"), jnp.float32)
        self.quantizer = Quantizer(config.quantizer)
        self.pixel_expansion = _cell_map(config.pixel, config.pixel.latent, ("code", "conv_out"), dtype)
        self.pixel_decoder = PixelDecoder(config.pixel, dtype)

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        *,
        train: bool,
        key: Key[Array, ""] | None = None,
        update_codebook: bool = True,
    ) -> TokenizerOutput:
        """The whole way: encode, quantise, decode both halves.

        Args:
          images: float32 in [-1, 1], of a size the family lists.
          train: drops scales and updates the codebook (make the collection "codebook" mutable); needs `key`.
          key: this step's randomness.
          update_codebook: False leaves the collection "codebook" as it is.
        """
        schedule = self.config.family.schedule(images.shape[1:3])
        features = self.encode_features(images)
        quantised = self.quantizer(features, schedule, train=train, key=key, update_codebook=update_codebook)
        return TokenizerOutput(
            reconstruction=self.decode_features(quantised.features),
            semantic=self.decode_semantic(quantised.features) if self.config.quantizer.dual else None,
            codes=quantised.codes,
            commitment=quantised.commitment,
            stats=quantised.stats,
            vq=quantised.vq,
            entropy_sample=quantised.entropy_sample,
            entropy_batch=quantised.entropy_batch,
        )

    def encode_features(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B Y X C"]:
        """Continuous features on the code grid, semantic half first; float32."""
        pixel = join_rows(self.pixel_projection(self.pixel_encoder(images)))
        if not self.config.quantizer.dual:
            return pixel
        semantic = self.semantic_projection(self.semantic_encoder(images))
        return jnp.concatenate([semantic, pixel], axis=-1)

    def encode(
        self,
        images: Float[Array, "B H W 3"],
        keys: Key[Array, "B"] | None = None,
        self_correction: SelfCorrection | None = None,
    ) -> tuple[Int[Array, "B N"], Int[Array, "B N"]]:
        """Codes (inputs, targets) of pictures; see `Quantizer.encode`."""
        schedule = self.config.family.schedule(images.shape[1:3])
        return self.quantizer.encode(self.encode_features(images), schedule, keys, self_correction)

    def accumulate(self, codes: Int[Array, "B N"], schedule: ScaleSchedule) -> list[Float[Array, "B Y X C"]]:
        """The accumulated feature map after each scale."""
        return self.quantizer.accumulate(codes, schedule)

    def decode_features(self, features: Float[Array, "B Y X C"]) -> Float[Array, "B H W 3"]:
        """Pictures of (accumulated) features, float32, not clamped."""
        return self.pixel_decoder(self.decoder_latents(features))

    def decoder_latents(self, features: Float[Array, "B Y X C"]) -> Float[Array, "B Y X Z"]:
        """What the pixel decoder makes pictures of."""
        visible = features if self.config.decode_from == "both" else features[..., self.config.quantizer.semantic_dim :]
        return self.pixel_expansion(visible)

    def decode_semantic(self, features: Float[Array, "B Y X C"]) -> Float[Array, "B Y X D"]:
        """The teacher's patch features as predicted from the semantic half.

        Raises:
          ValueError: a single codebook has no semantic half.
        """
        if not self.config.quantizer.dual:
            raise ValueError("quantizer.semantic_dim = 0: a single codebook has no semantic half to decode")
        x = self.semantic_expansion(features[..., : self.config.quantizer.semantic_dim])
        batch, rows, columns, width = x.shape
        x = self.semantic_decoder(x.reshape(batch, rows * columns, width))
        return self.semantic_head(x).reshape(batch, rows, columns, self.config.teacher_width)


def start_from_teacher(params: Any, teacher_vision: Any) -> Any:
    """The tokenizer's parameters with the semantic encoder's replaced by the teacher's vision tower.

    Args:
      params: the tokenizer's "params" (unboxed).
      teacher_vision: the teacher's vision tower (unboxed): "params" of a ViT of the same configuration.

    Raises:
      UserError: the towers differ in shape.
    """
    ours, theirs = (_shapes(tree) for tree in (params["semantic_encoder"], teacher_vision))
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if differing:
        raise UserError(
            f"the teacher's vision tower differs from the tokenizer's vit in {', '.join(differing)}; "
            "give both the same vit configuration, or do not start from the teacher"
        )
    return {**params, "semantic_encoder": teacher_vision}


def _cell_map(pixel: PixelConfig, features: int, axes: tuple[str, str], dtype: DTypeLike) -> nn.Module:
    """What lies between latents and codes: a dense layer on each cell, or a convolution over its neighbours too."""
    size = pixel.projection_size
    return dense(features, axes, dtype) if size == 1 else convolution(features, dtype, size=size)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in flatten_dict(tree, sep="/").items()}

"""The decoder's training objective: weighted cross-entropy, and metrics per modality and scale."""

import dataclasses
import functools
from collections.abc import Iterator
from collections.abc import Sequence as Seq

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nextflow_jax.config import Fault, nearest
from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.models.head import SeparateHeads
from nextflow_jax.ops.cross_entropy import IMPLEMENTATIONS, TokenLosses, linear_cross_entropy
from nextflow_jax.ops.cross_entropy.reference import token_losses

Metrics = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
"""Name -> (sum, weight)."""


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised besides the cross-entropy, and how it is computed."""

    z_loss: float = 0.0
    """Weight of the squared log-normaliser (PaLM, arXiv 2204.02311, section 5); 0 = off."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over all ids its head knows (arXiv 1512.00567); 0 = off."""
    cross_entropy: str = "auto"
    """A name in `nextflow_jax.ops.cross_entropy.IMPLEMENTATIONS`, or "auto"."""

    def faults(self) -> Iterator[Fault]:
        """The rules this objective breaks."""
        if self.z_loss < 0:
            yield Fault("z_loss", self.z_loss, "must not be negative", "use 0.0 to switch it off, or 1e-4")
        if not 0 <= self.label_smoothing < 1:
            rule = "is a share of the target, at least 0 and below 1"
            yield Fault("label_smoothing", self.label_smoothing, rule, "use 0.0 to switch it off, or 0.1")
        choices = ("auto", *IMPLEMENTATIONS)
        if self.cross_entropy not in choices:
            rule = f"must be one of {', '.join(choices)}"
            yield Fault("cross_entropy", self.cross_entropy, rule, nearest(self.cross_entropy, choices))


def decoder_loss(
    logits: Float[Array, "B S V"],
    targets: Int[Array, "B S"],
    loss_weights: Float[Array, "B S"],
    scale_index: Int[Array, "B S"],
    model: DecoderConfig,
    objective: ObjectiveConfig,
) -> tuple[Float[Array, ""], Metrics]:
    """The loss of logits; see `reduce_losses`. With separate heads the logits of each modality are normalised apart."""
    if model.head == "shared":
        losses = token_losses(logits, targets, objective.label_smoothing)
    else:
        offset, used = model.vocabulary.vision_offset, model.vocabulary.used
        parts = (logits[..., :offset], logits[..., offset:used])
        losses = _by_modality(
            [token_losses(*part, objective.label_smoothing) for part in zip(parts, _own_ids(targets, model))],
            targets,
            model,
        )
    return reduce_losses(losses, targets, loss_weights, scale_index, model, objective)


def hidden_loss(
    hidden: Float[Array, "B S D"],
    head: Float[Array, "D V"] | SeparateHeads,
    targets: Int[Array, "B S"],
    loss_weights: Float[Array, "B S"],
    scale_index: Int[Array, "B S"],
    model: DecoderConfig,
    objective: ObjectiveConfig,
) -> tuple[Float[Array, ""], Metrics]:
    """The loss of hidden states and head weights, without keeping logits where they are many; see `reduce_losses`."""
    cross_entropy = functools.partial(
        linear_cross_entropy, label_smoothing=objective.label_smoothing, implementation=objective.cross_entropy
    )
    if isinstance(head, SeparateHeads):
        parts = [cross_entropy(hidden, weights, ids) for weights, ids in zip(head, _own_ids(targets, model))]
        losses = _by_modality(parts, targets, model)
    else:
        losses = cross_entropy(hidden, head, targets)
    return reduce_losses(losses, targets, loss_weights, scale_index, model, objective)


def reduce_losses(
    losses: TokenLosses,
    targets: Int[Array, "B S"],
    loss_weights: Float[Array, "B S"],
    scale_index: Int[Array, "B S"],
    model: DecoderConfig,
    objective: ObjectiveConfig,
) -> tuple[Float[Array, ""], Metrics]:
    """sum(w * loss) / sum(w) over the whole global batch, and its metrics.

    "loss" carries the loss weights. The others count every position with a positive weight once, so that they compare
    between runs with different weightings: "cross_entropy/..." (nats) and "accuracy/..." for text, vision and scale_01
    to scale_KK. <boi> predicts scale 1. Label smoothing changes "loss" alone.

    Args:
      losses: of each position.
      targets: unified ids.
      loss_weights: 0 where nothing is to be predicted.
      scale_index: 0 at text positions, as in `Sequence`.
      model: its vocabulary tells visual targets; `max_scales` fixes the set of metrics.
      objective: the z-loss.
    """
    weight = loss_weights.astype(jnp.float32)
    total = losses.smoothed
    if objective.z_loss:
        total = total + objective.z_loss * jnp.square(losses.log_normaliser)
    metrics = {"loss": (jnp.sum(weight * total), jnp.sum(weight))}
    loss = metrics["loss"][0] / jnp.maximum(metrics["loss"][1], jnp.finfo(jnp.float32).tiny)

    counted = (weight > 0).astype(jnp.float32)
    is_vision = targets >= model.vocabulary.vision_offset
    scale = jnp.where(is_vision, jnp.maximum(scale_index, 1), 0)
    member = jax.nn.one_hot(scale, model.max_scales + 1, dtype=jnp.float32) * counted[..., None]
    count_K = member.sum(axis=(0, 1))
    for name, value in (("cross_entropy", losses.cross_entropy), ("accuracy", losses.correct)):
        sum_K = jnp.einsum("BSK,BS->K", member, jax.lax.stop_gradient(value), precision=jax.lax.Precision.HIGHEST)
        metrics[f"{name}/text"] = (sum_K[0], count_K[0])
        metrics[f"{name}/vision"] = (sum_K[1:].sum(), count_K[1:].sum())
        for k in range(1, model.max_scales + 1):
            metrics[f"{name}/scale_{k:02d}"] = (sum_K[k], count_K[k])
    return loss, metrics


def _own_ids(targets: Int[Array, "B S"], model: DecoderConfig) -> tuple[Int[Array, "B S"], Int[Array, "B S"]]:
    """Each target as an id of the text head and as one of the vision head; 0 where it is of the other."""
    offset = model.vocabulary.vision_offset
    is_vision = targets >= offset
    return jnp.where(is_vision, 0, targets), jnp.where(is_vision, targets - offset, 0)


def _by_modality(parts: Seq[TokenLosses], targets: Int[Array, "B S"], model: DecoderConfig) -> TokenLosses:
    """Of (text, vision) losses, those of what each position predicts."""
    is_vision = targets >= model.vocabulary.vision_offset
    return TokenLosses(*(jnp.where(is_vision, vision, text) for text, vision in zip(*parts)))

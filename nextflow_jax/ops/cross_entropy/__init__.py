"""Output head and cross-entropy in one operation, token by token: logits need not exist for a whole row at once.

A new implementation is a file in this package with the signature of `linear_cross_entropy` (without `implementation`)
and a line in `IMPLEMENTATIONS`.
"""

from collections.abc import Callable

from jaxtyping import Array, Float, Int

from nextflow_jax.config import choose
from nextflow_jax.ops.cross_entropy import fused, reference
from nextflow_jax.ops.cross_entropy.reference import TokenLosses

IMPLEMENTATIONS: dict[str, Callable[..., TokenLosses]] = {
    "reference": reference.linear_cross_entropy,
    "fused": fused.linear_cross_entropy,
}

PLAIN_LOGITS = 2**26
"""Up to this many logits "auto" keeps them all (256 MiB in float32): below it, computing them twice costs more."""


def linear_cross_entropy(
    hidden: Float[Array, "B S D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B S"],
    *,
    label_smoothing: float = 0.0,
    implementation: str = "auto",
) -> TokenLosses:
    """Cross-entropy of softmax(hidden @ head) at every position, with logits and losses in float32.

    Args:
      hidden: the decoder's last hidden states, any float dtype.
      head: output weights; cast to the dtype of `hidden` for the product.
      targets: ids in [0, V); positions without a target carry any id and are weighted by zero later.
      label_smoothing: share of the target that is spread over all V ids (Szegedy et al., arXiv 1512.00567).
      implementation: a name in `IMPLEMENTATIONS`, or "auto": "reference" up to `PLAIN_LOGITS` logits, else "fused".

    All V columns are in the normaliser and in the smoothed target, those past the last id that is used
    (`Vocabulary.used`) too: as rows of the head that are never a target, they learn to stay small.

    Raises:
      UserError: an unknown implementation.
    """
    if implementation == "auto":
        implementation = "reference" if targets.size * head.shape[1] <= PLAIN_LOGITS else "fused"
    return choose("cross-entropy implementation", implementation, IMPLEMENTATIONS)(
        hidden, head, targets, label_smoothing=label_smoothing
    )

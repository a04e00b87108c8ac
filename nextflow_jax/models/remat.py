"""What of each decoder layer is kept for the backward pass, by name; the rest is computed again (rematerialised).

Peak memory of a chip is that of the 7.85B decoder's training step, compiled for v5p:4x4x4 (fsdp 64, a row of 16,384
positions a chip, splash attention): experiments/bench/remat.py, where the full table is.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from nextflow_jax.config import choose
from nextflow_jax.ops.attention import kept

LAYER_INPUT = "layer_input"

Policy = Callable[..., Any]

policies = jax.checkpoint_policies

REMAT_POLICIES: dict[str, Policy] = {
    "full": policies.nothing_saveable,
    "attention": policies.save_only_these_names(kept.NAME),
    "dots": policies.dots_with_no_batch_dims_saveable,
    "dots_attention": policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(kept.NAME)
    ),
    "offload": policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[LAYER_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
"""Remat policy by name; "none" is no remat at all.

    offload           6.55 GiB   nothing on the device: the layers' inputs wait in the host's memory (3.06 GiB there);
                                 on a CPU, which is its own host, the same as full
    full              9.48 GiB   the layer's input; everything else is computed again
    attention        12.97 GiB   that, and the mixed values of attention with their normalisers, so that no kernel runs
                                 its forward pass twice
    dots             48.10 GiB   the layer's input and the results of all products with weights; norms, activations and
                                 attention are computed again
    dots_attention   51.09 GiB   both
"""


def layer_input(x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """`x`, named: what policies that keep the input of a layer on the host keep."""
    return checkpoint_name(x, LAYER_INPUT)


def remat_policy(name: str) -> Policy:
    """The policy of this name.

    Raises:
      UserError: an unknown name.
    """
    return choose("remat policy", name, REMAT_POLICIES)

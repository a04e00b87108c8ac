"""Rows for encoders and decoders in VQGAN's shape, which VAR and TokenFlow name differently and compute alike."""

import dataclasses
from collections.abc import Callable, Sequence

from nextflow_jax.convert.mapping import Row
from nextflow_jax.convert.transforms import CONV, LINEAR

Rows = tuple[Row, ...]


@dataclasses.dataclass(frozen=True)
class Names:
    """How a checkpoint calls the parts of an encoder or decoder; prefixes end without a dot."""

    levels: Sequence[str]
    """Prefix of each level, in our order (fine to coarse)."""
    block: str
    """Residual blocks, within a level; their number follows."""
    middle: tuple[str, str, str]
    """Residual block, attention, residual block at the coarsest level."""
    resample: str
    """The convolution that halves or doubles the grid, within a level."""
    attention: Callable[[str, str], Rows]
    """(their prefix, ours) -> rows of the projections to queries, keys and values."""


def coder_rows(theirs: str, ours: str, resample: str, names: Names) -> Rows:
    """Rows of one encoder or decoder.

    Args:
      theirs: its name in the checkpoint.
      ours: its name in our tree.
      resample: what our tree calls the layers that change the grid: "down" or "up".
      names: the checkpoint's names of its parts.
    """
    rows = [
        *convolution(f"{theirs}.conv_in", f"{ours}/stem"),
        *norm(f"{theirs}.norm_out", f"{ours}/out_norm/norm"),
        *convolution(f"{theirs}.conv_out", f"{ours}/out"),
    ]
    for level, prefix in enumerate(f"{theirs}.{level}" for level in names.levels):
        rows += _residual_block(f"{prefix}.{names.block}.{{block}}", f"{ours}/level_{level}_block_{{block}}")
        rows += _attention(f"{prefix}.attn.{{block}}", f"{ours}/level_{level}_attention_{{block}}", names)
        rows += convolution(f"{prefix}.{names.resample}", f"{ours}/{resample}_{level}")
    first, attention, second = (f"{theirs}.{part}" for part in names.middle)
    rows += _residual_block(first, f"{ours}/middle_block_0")
    rows += _attention(attention, f"{ours}/middle_attention", names)
    rows += _residual_block(second, f"{ours}/middle_block_1")
    return tuple(rows)


def convolution(theirs: str, ours: str) -> Rows:
    """Kernel and bias of a convolution."""
    return Row(f"{theirs}.weight", f"{ours}/kernel", CONV), Row(f"{theirs}.bias", f"{ours}/bias")


def linear(theirs: str, ours: str) -> Rows:
    """Kernel and bias of a dense layer."""
    return Row(f"{theirs}.weight", f"{ours}/kernel", LINEAR), Row(f"{theirs}.bias", f"{ours}/bias")


def norm(theirs: str, ours: str) -> Rows:
    """Scale and bias of a group or layer norm."""
    return Row(f"{theirs}.weight", f"{ours}/scale"), Row(f"{theirs}.bias", f"{ours}/bias")


def _residual_block(theirs: str, ours: str) -> Rows:
    return (
        *norm(f"{theirs}.norm1", f"{ours}/norm_1/norm"),
        *convolution(f"{theirs}.conv1", f"{ours}/conv_1"),
        *norm(f"{theirs}.norm2", f"{ours}/norm_2/norm"),
        *convolution(f"{theirs}.conv2", f"{ours}/conv_2"),
        *convolution(f"{theirs}.nin_shortcut", f"{ours}/skip"),
    )


def _attention(theirs: str, ours: str, names: Names) -> Rows:
    return (
        *norm(f"{theirs}.norm", f"{ours}/norm"),
        *names.attention(theirs, ours),
        *convolution(f"{theirs}.proj_out", f"{ours}/out"),
    )

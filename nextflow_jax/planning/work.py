"""What one chip does in a training step: FLOPs executed, bytes moved in its memory, over ICI and over DCN."""

import dataclasses
import math
from collections.abc import Iterator

from nextflow_jax.aot.chips import CHIPS, Chip
from nextflow_jax.aot.roofline import ici_bandwidth
from nextflow_jax.config import Fault

COMPUTE_BYTES = 2
"""bfloat16: weights as gathered, activations."""
STATE_BYTES = 4
"""float32: parameters, gradients, each of AdamW's two moments."""
CHECKPOINT_BYTES_PER_PARAMETER = 3 * STATE_BYTES
UPDATE_ARRAYS = 7
"""The update reads parameter, gradient and two moments, and writes all but the gradient."""


@dataclasses.dataclass(frozen=True)
class TransformerShape:
    """A dense decoder with grouped heads and a gated MLP."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_width: int
    vocabulary: int

    @property
    def attention_parameters(self) -> int:
        """Of a layer."""
        return 2 * self.width * self.head_size * (self.heads + self.kv_heads)

    @property
    def mlp_parameters(self) -> int:
        """Of a layer."""
        return 3 * self.width * self.mlp_width

    @property
    def parameters(self) -> int:
        """All matrices, token table and head included."""
        return self.layers * (self.attention_parameters + self.mlp_parameters) + 2 * self.vocabulary * self.width

    @property
    def matmul_parameters(self) -> int:
        """Those that multiply: all but the token table."""
        return self.parameters - self.vocabulary * self.width

    @property
    def flops_per_pair(self) -> int:
        """Forward, all layers, of one query that sees one key."""
        return 4 * self.layers * self.heads * self.head_size


Parts = frozenset[str]
"""Products of a layer's forward pass that its backward pass computes again, of "qkv", "out", "mlp" and "attention"."""

REMAT: dict[str, Parts] = {
    "full": frozenset({"qkv", "out", "mlp", "attention"}),
    "offload": frozenset({"qkv", "out", "mlp", "attention"}),
    "attention": frozenset({"qkv", "out", "mlp"}),
    "dots": frozenset({"attention"}),
    "dots_attention": frozenset(),
    "none": frozenset(),
}
"""The policies of `nextflow_jax.models.remat`."""

_MLP_AGAIN = 2 / 3
"""The MLP's last product is the layer's last: nothing in the backward pass asks for its result."""
ATTENTION_BLOCK = 512
"""Kernels work on whole blocks of positions and keys: half a block more at both ends of what a position sees."""

_FLASH_BACKWARD = 2.5
"""Products of a flash kernel's backward pass in forwards: five for two, since it computes the scores again."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Slices of chips, and the chips along each axis of the mesh within one slice."""

    generation: str
    topology: tuple[int, ...]
    """Chips of a slice along each dimension of its torus."""
    slices: int = 1
    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1

    @property
    def chip(self) -> Chip:
        """What is known about the chips."""
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        """Of all slices."""
        return self.slices * math.prod(self.topology)

    @property
    def ici_bandwidth(self) -> float:
        """Bytes/s that a chip can send within its slice."""
        return ici_bandwidth(self.chip, self.topology)

    def faults(self) -> Iterator[Fault]:
        """The rules this placement breaks."""
        per_slice, mesh = math.prod(self.topology), self.data * self.fsdp * self.tensor * self.context
        if mesh != per_slice:
            yield Fault("data x fsdp x tensor x context", mesh, "must be the chips of a slice", f"use {per_slice}")


@dataclasses.dataclass(frozen=True)
class Batch:
    """The global batch of a step."""

    rows: int
    length: int
    """Positions of a row."""
    pairs: float
    """(query, key) of a row that attention sees."""

    @property
    def positions(self) -> int:
        """Of the whole batch."""
        return self.rows * self.length


@dataclasses.dataclass(frozen=True)
class ChipWork:
    """One chip's part of a step. FLOPs and bytes."""

    matmul_flops: float
    attention_flops: float
    update_bytes: float
    """Read and written in the chip's own memory by the optimizer."""
    ici_bytes: float
    """Sent to other chips of the slice, as rings send it."""
    dcn_bytes: float
    """Sent to other slices, as a ring of slices sends it."""


def model_flops(shape: TransformerShape, batch: Batch, frozen: bool = False) -> float:
    """Of a step's forward and backward pass, nothing computed twice: what the MFU counts.

    Args:
      shape: of the decoder.
      batch: the global one.
      frozen: as in `chip_work`; the head is trained.
    """
    head = shape.vocabulary * shape.width
    linear = (2 if frozen else 3) * (shape.matmul_parameters - head) + 3 * head
    return 2.0 * linear * batch.positions + 3.0 * shape.flops_per_pair * batch.pairs * batch.rows


def chip_work(
    shape: TransformerShape, batch: Batch, place: Placement, again: Parts = REMAT["full"], frozen: bool = False
) -> ChipWork:
    """One chip's part of a step.

    Args:
      shape: of the decoder.
      batch: the global one.
      place: where its parts lie.
      again: what rematerialisation computes twice, such as a value of `REMAT`.
      frozen: all but a small share of the parameters stay as they are: no gradients of weights, no update.
    """
    passes = 2 if frozen else 3
    layer = passes * (shape.attention_parameters + shape.mlp_parameters) + _parameters_again(shape, again)
    matmul = 2.0 * batch.positions * (shape.layers * layer + 3 * shape.vocabulary * shape.width)
    kernels = 1 + _FLASH_BACKWARD + ("attention" in again)
    pairs = min(batch.pairs + ATTENTION_BLOCK * batch.length, float(batch.length) ** 2)
    positions = batch.positions / place.chips
    state = STATE_BYTES * shape.parameters / (place.fsdp * place.tensor * place.context)
    return ChipWork(
        matmul_flops=matmul / place.chips,
        attention_flops=kernels * shape.flops_per_pair * pairs * batch.rows / place.chips,
        update_bytes=0.0 if frozen else UPDATE_ARRAYS * state,
        ici_bytes=_fsdp_bytes(shape, place, frozen)
        + _tensor_bytes(shape, positions, place, again)
        + _context_bytes(shape, positions, place, again),
        dcn_bytes=0.0 if frozen else _all_reduce(place.slices, state),
    )


def _parameters_again(shape: TransformerShape, again: Parts) -> float:
    """Parameters of a layer whose products are computed again."""
    projection = shape.width * shape.head_size
    parts = {
        "qkv": projection * (shape.heads + 2 * shape.kv_heads),
        "out": projection * shape.heads,
        "mlp": _MLP_AGAIN * shape.mlp_parameters,
        "attention": 0.0,
    }
    return math.fsum(parts[part] for part in again)


def _all_gather(size: int, result_bytes: float) -> float:
    """Bytes a member of a ring sends to gather (or reduce-scatter) an array of so many bytes."""
    return (size - 1) / size * result_bytes


def _all_reduce(size: int, array_bytes: float) -> float:
    return 2 * _all_gather(size, array_bytes)


def _fsdp_bytes(shape: TransformerShape, place: Placement, frozen: bool) -> float:
    """Weights gathered for the forward and for the backward pass, gradients scattered, then reduced over replicas."""
    part = shape.parameters / place.tensor
    group = place.fsdp * place.context
    gathers = 2 * _all_gather(group, COMPUTE_BYTES * part)
    if frozen:
        return gathers
    gradients = STATE_BYTES * part
    return gathers + _all_gather(group, gradients) + _all_reduce(place.data, gradients / group)


def _tensor_bytes(shape: TransformerShape, positions: float, place: Placement, again: Parts) -> float:
    """Sums of activations: two a layer in the forward pass, two in the backward pass, and attention's once more."""
    sums = shape.layers * (4 + ("out" in again))
    return sums * _all_reduce(place.tensor, positions * place.tensor * shape.width * COMPUTE_BYTES)


def _context_bytes(shape: TransformerShape, positions: float, place: Placement, again: Parts) -> float:
    """Keys and values of a row gathered in every pass and their gradients scattered; queries and results exchanged.

    As `nextflow_jax.ops.attention.sharded` does it.
    """
    passes = 3 + ("attention" in again)
    keys = 2 * shape.kv_heads * shape.head_size * COMPUTE_BYTES * positions * place.context
    queries = 2 * shape.heads * shape.head_size * COMPUTE_BYTES * positions * (place.context > 1)
    return shape.layers * passes * (_all_gather(place.context, keys) + queries)

"""Published speeds of dense decoders trained with MaxText, and the settings they were reached with.

All of AI-Hypercomputer/maxtext at e591f30. MFU is from src/maxtext/configs/tpu/{v5e,v5p}/README.md, batch, mesh and
rematerialisation from the scripts beside them (16b.sh, ...), shapes by `get_individual_scales` of
src/maxtext/configs/types.py from base.yml. Tokens/s a chip are from docs/reference/models/tiering.md, their settings
from benchmarks/maxtext_trillium_model_configs.py (llama3_1_8b_8192, llama3_1_70b_8192, llama2_70b_4096) and from
benchmarks/maxtext_v5p_model_configs.py at 92e59fd, to which that page links (llama2_70b_v5p_128).

These MFUs count attention without the causal mask (tiering.md, note 2), from which the seconds follow; kernels skip
what the mask hides. v5p-N is N TensorCores, N/2 chips, and its torus that of Google's list of v5p topologies.
"""

import dataclasses
from collections.abc import Sequence

from nextflow_jax.planning.work import REMAT, Batch, Parts, Placement, TransformerShape

SAVES_ALL_BUT_MLP_INPUT: Parts = frozenset({"mlp", "attention"})
"""MaxText's save_dot_except_mlpwi; also what Llama 3.1 8B offloads on v6e."""
SAVES_QKV: Parts = frozenset({"out", "mlp", "attention"})
"""MaxText's qkv_proj_offloaded; also what Llama 3.1 70B offloads on v6e."""
SAVES_PRODUCTS = REMAT["dots"]
"""MaxText's minimal: all but attention's mixed values."""


@dataclasses.dataclass(frozen=True)
class PublishedRun:
    """One measured step."""

    name: str
    shape: TransformerShape
    place: Placement
    batch: Batch
    again: Parts
    seconds: float
    """Of a step, from what was published."""
    fitted: bool
    """Whether `nextflow_jax.planning.step_time` takes its free parameters from it; the others check them."""


def scaled_shape(billions: int) -> TransformerShape:
    """MaxText's base.yml at `global_parameter_scale` = 16, 32, 64 or 128: that many billion parameters."""
    cycles, rest = divmod(billions.bit_length() - 1, 3)
    wide, heads = 2 ** (cycles + (rest > 1)), 2 ** (cycles + (rest > 0))
    return TransformerShape(16 * 2**cycles, 2048 * wide, 16 * heads, 16 * heads, 128, 7168 * heads, 32_000)


LLAMA_3_1_8B = TransformerShape(32, 4096, 32, 8, 128, 14_336, 128_256)
LLAMA_3_1_70B = TransformerShape(80, 8192, 64, 8, 128, 28_672, 128_256)
LLAMA_2_70B = TransformerShape(80, 8192, 64, 8, 128, 28_672, 32_000)

_V5E = Placement("v5e", (16, 16), fsdp=256)
_V6E = Placement("v6e", (16, 16), fsdp=256)
_V5P_64 = Placement("v5p", (4, 4, 4), fsdp=16, tensor=4)

_MFU: Sequence[tuple[int, Placement, int, Parts, bool, tuple[float, ...]]] = (
    # Billions, one slice, rows a chip, rematerialised, fitted, per cent MFU on 1, 2, 4, ... slices.
    (16, _V5E, 6, REMAT["full"], True, (61.10, 59.37, 59.14, 58.27, 56.56, 54.65)),
    (32, _V5E, 4, REMAT["full"], False, (66.86, 64.81, 64.10, 63.67, 62.26, 60.40)),
    (64, _V5E, 2, REMAT["full"], True, (59.90, 56.66, 55.85, 54.96, 53.29, 50.18)),
    (
        *(128, Placement("v5e", (16, 16), fsdp=16, tensor=16), 1, SAVES_QKV, False),
        (56.06, 55.82, 54.93, 52.93, 50.86, 46.25),
    ),
    (32, _V5P_64, 6, SAVES_PRODUCTS, True, (71.47, 69.43)),
    (64, _V5P_64, 3, SAVES_PRODUCTS, False, (70.31, 67.26)),
    (128, Placement("v5p", (4, 4, 8), fsdp=16, tensor=8), 1, SAVES_PRODUCTS, True, (68.68, 66.34)),
    (128, Placement("v5p", (4, 8, 8), fsdp=32, tensor=8), 1, SAVES_PRODUCTS, False, (68.83, 59.66)),
)
_SCALED_LENGTH = 2048

_TOKENS_PER_SECOND: Sequence[tuple[str, TransformerShape, Placement, int, int, Parts, bool, float]] = (
    # Name, shape, slice, rows a chip, length, rematerialised, fitted, tokens/s a chip.
    ("Llama 3.1 8B", LLAMA_3_1_8B, _V6E, 4, 8192, SAVES_ALL_BUT_MLP_INPUT, False, 7207),
    ("Llama 3.1 70B", LLAMA_3_1_70B, _V6E, 5, 8192, SAVES_QKV, True, 960),
    ("Llama 2 70B", LLAMA_2_70B, _V6E, 4, 4096, REMAT["full"], False, 900),
    ("Llama 2 70B", LLAMA_2_70B, Placement("v5p", (8, 8, 8), fsdp=512), 4, 4096, SAVES_ALL_BUT_MLP_INPUT, False, 692),
)


def published_runs() -> list[PublishedRun]:
    """All of them."""
    return [*_scaled_runs(), *_named_runs()]


def _scaled_runs() -> list[PublishedRun]:
    runs = []
    for billions, one, rows, again, fitted, shares in _MFU:
        shape = scaled_shape(billions)
        for doublings, share in enumerate(shares):
            place = dataclasses.replace(one, slices=2**doublings)
            batch = _causal(rows * place.chips, _SCALED_LENGTH)
            unmasked = 2.0 * shape.matmul_parameters * batch.positions
            unmasked += shape.flops_per_pair * batch.rows * batch.length**2
            seconds = 3 * unmasked / (place.chips * place.chip.peak_flops * share / 100)
            runs.append(PublishedRun(f"{billions}B", shape, place, batch, again, seconds, fitted))
    return runs


def _named_runs() -> list[PublishedRun]:
    runs = []
    for name, shape, place, rows, length, again, fitted, speed in _TOKENS_PER_SECOND:
        batch = _causal(rows * place.chips, length)
        seconds = rows * length / speed
        runs.append(PublishedRun(name, shape, place, batch, again, seconds, fitted))
    return runs


def _causal(rows: int, length: int) -> Batch:
    return Batch(rows, length, length * (length + 1) / 2)

"""What rows cost: FLOPs from positions and the pairs of positions that attention sees."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int, Shaped


@dataclasses.dataclass(frozen=True)
class RowCost:
    """FLOPs of a training step's row: linear in its positions, padding included, and in its visible pairs.

    Plain numbers, since data knows no models: `nextflow_jax.training.row_cost.row_cost` takes them from a decoder's
    configuration. Packing needs their ratio alone.

    Source: NextFlow's packing to a fixed compute budget, which has FLOPs per sequence length (recipe section 5).
    """

    per_token: float
    per_pair: float

    def flops(
        self, positions: Shaped[np.ndarray, "*rows"] | int, pairs: Shaped[np.ndarray, "*rows"] | int
    ) -> Float[np.ndarray, "*rows"] | float:
        """FLOPs of rows of so many positions, of which `pairs` (query, key) are visible."""
        return self.per_token * positions + self.per_pair * pairs


DEFAULT_COST = RowCost(per_token=1.0, per_pair=1 / 35_000)
"""Where no model is known: the ratio of Qwen2.5-VL-7B's shape, whose linear part costs 35,000 pairs a position."""


def estimated_pairs(lengths: Int[np.ndarray, "documents"]) -> Int[np.ndarray, "documents"]:
    """Visible pairs of documents of which positions alone are known: those of causal text, for pictures too few."""
    lengths = lengths.astype(np.int64)
    return lengths * (lengths + 1) // 2

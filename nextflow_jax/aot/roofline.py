"""The roofline: how long a step takes at least, when chips and links do all that they are sold for.

Each resource alone needs the time of its work at its full rate; a step takes at least as long as the busiest of them
(everything overlapped), and no longer than all of them one after another. Latencies, stragglers and what a kernel
leaves of the peak are not in here: real steps are slower.
"""

import dataclasses
from typing import Any

from nextflow_jax.aot.chips import SOURCE, Chip


@dataclasses.dataclass(frozen=True)
class Work:
    """What one chip does in a step."""

    flops: float
    """Executed, rematerialisation included."""
    hbm_bytes: float
    """Read and written in the chip's own memory, at least."""
    ici_bytes: float
    """Sent to other chips of the slice."""
    dcn_bytes: float = 0.0
    """Sent to other slices."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step by resource."""

    compute: float
    hbm: float
    ici: float
    dcn: float

    @property
    def bound(self) -> str:
        """The busiest resource."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]

    @property
    def overlapped(self) -> float:
        """When everything goes on at once: the roofline."""
        return max(dataclasses.astuple(self))

    @property
    def in_turn(self) -> float:
        """When nothing does."""
        return sum(dataclasses.astuple(self))


def ici_bandwidth(chip: Chip, shape: tuple[int, ...]) -> float:
    """Bytes/s that a chip of a slice of this shape can send, as rings use it.

    A dimension whose ends are not joined has one direction of each ring missing: half of its bandwidth. A dimension of
    one chip has no links that lead anywhere.

    Args:
      chip: of which generation.
      shape: chips of the slice along each dimension.
    """
    per_axis = chip.ici_bandwidth / chip.torus_axes
    shares = (0.0 if size == 1 else 1.0 if size % chip.wraps_at == 0 else 0.5 for size in shape)
    return per_axis * sum(shares)


def estimate(work: Work, chip: Chip, shape: tuple[int, ...]) -> Estimate:
    """Seconds of `work` on each chip of slices of this shape."""
    ici = ici_bandwidth(chip, shape)
    return Estimate(
        compute=work.flops / chip.peak_flops,
        hbm=work.hbm_bytes / chip.hbm_bandwidth,
        ici=work.ici_bytes / ici if ici else 0.0,
        dcn=work.dcn_bytes / chip.dcn_bandwidth,
    )


def mfu_bound(model_flops: float, chips: int, chip: Chip, seconds: float) -> float:
    """The model FLOPs utilisation of a step of so many seconds, at most 1: model FLOPs are counted generously."""
    return min(1.0, model_flops / (chips * chip.peak_flops * seconds))


def assumptions(chip: Chip, shape: tuple[int, ...]) -> dict[str, Any]:
    """The figures that `estimate` divides by, a chip's, and where they are from."""
    return {
        "peak_flops": chip.peak_flops,
        "hbm_bytes_per_second": chip.hbm_bandwidth,
        "ici_bytes_per_second": ici_bandwidth(chip, shape),
        "dcn_bytes_per_second": chip.dcn_bandwidth,
        "source": "round numbers of no machine" if chip.simulated else SOURCE,
    }

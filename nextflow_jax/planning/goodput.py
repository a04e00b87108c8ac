"""What failures and checkpoints leave of a run's time, and how often to save (Young 1974, Daly 2006).

J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future Generation Computer
Systems 22 (2006): with failures at random (exponential), mean time M between them, a save that costs d every t seconds
of work and R to be back after a failure, work of T seconds takes M exp(R / M) (exp((t + d) / M) - 1) T / t.
"""

import dataclasses
import math
from collections.abc import Iterator

from nextflow_jax.config import Fault
from nextflow_jax.planning.work import CHECKPOINT_BYTES_PER_PARAMETER

CHIPS_PER_HOST = 4


@dataclasses.dataclass(frozen=True)
class Reliability:
    """What goes wrong, and what it costs."""

    failures_per_chip_hour: float = 419 / (54 * 24 * 16_384)
    """Llama 3 405B: 419 unexpected interruptions in 54 days on 16,384 H100 (arXiv 2407.21783, section 3.3.4). We know
    no such figure for TPUs."""
    restart_seconds: float = 600.0
    """From the failure to the first step again: noticing, a new host, restoring, compiling from the cache. Assumed."""
    host_copy_bandwidth: float = 15e9
    """Bytes/s from a chip to its host's memory while steps wait: PCIe, by jax-ml.github.io/scaling-book/tpus."""
    storage_bandwidth: float = 0.5e9
    """Bytes/s a host writes to storage, behind the steps. Assumed."""
    begin_seconds: float = 2.0
    """A save stops the steps for so long before anything is copied: all processes agree and begin. Assumed."""
    finish_seconds: float = 30.0
    """A save is not done before so long after its last byte: metadata, the final name. Assumed."""

    def faults(self) -> Iterator[Fault]:
        """The rules these settings break."""
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                yield Fault(field.name, getattr(self, field.name), "must be positive", f"use {field.default:g}")


@dataclasses.dataclass(frozen=True)
class Saving:
    """Checkpoints of a run."""

    interval: float
    """Seconds of steps between two."""
    blocking: float
    """Seconds the steps wait for one."""
    goodput: float
    """Share of the time in which steps are done that stay done."""


def mean_time_between_failures(reliability: Reliability, chips: int) -> float:
    """Seconds until one of so many chips fails, on average."""
    return 3600 / (reliability.failures_per_chip_hour * chips)


def young_interval(blocking: float, between_failures: float) -> float:
    """The best seconds between saves, to first order."""
    return math.sqrt(2 * blocking * between_failures)


def daly_interval(blocking: float, between_failures: float) -> float:
    """The best seconds between saves, to third order in sqrt(blocking / between_failures)."""
    if blocking >= 2 * between_failures:
        return between_failures
    ratio = blocking / (2 * between_failures)
    return young_interval(blocking, between_failures) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - blocking


def goodput(interval: float, blocking: float, between_failures: float, restart: float) -> float:
    """Useful seconds of a second: the inverse of Daly's expected time for a second of work.

    Args:
      interval: seconds of work between saves.
      blocking: seconds a save stops the work.
      between_failures: mean seconds.
      restart: seconds from a failure to working again at the last save.
    """
    mean = between_failures
    return interval / (mean * math.exp(restart / mean) * math.expm1((interval + blocking) / mean))


def best_saving(parameters: int, chips: int, reliability: Reliability) -> Saving:
    """The interval of Daly, not shorter than writing takes, and what it leaves.

    A save that is still being written does not count yet, so a failure costs the writing too. Every chip copies and
    every host writes its share of parameters and moments once, however often they are replicated.
    """
    mean = mean_time_between_failures(reliability, chips)
    size = CHECKPOINT_BYTES_PER_PARAMETER * parameters
    blocking = reliability.begin_seconds + size / chips / reliability.host_copy_bandwidth
    writing = reliability.finish_seconds + size / (chips / CHIPS_PER_HOST) / reliability.storage_bandwidth
    interval = max(daly_interval(blocking, mean), writing)
    return Saving(interval, blocking, goodput(interval, blocking, mean, reliability.restart_seconds + writing))

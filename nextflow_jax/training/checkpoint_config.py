"""When checkpoints are saved, which of them stay, and how far they are trusted."""

import dataclasses
from collections.abc import Iterator

from nextflow_jax.config import Fault
from nextflow_jax.folders import url_rule

ORDERS = ("lowest", "highest")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Of a run's checkpoints; `train.checkpoint_every` and `train.keep` (the newest ones) say the rest."""

    minutes: float = 0.0
    """Also so long after the last one; 0 = by steps alone. The clock is looked at every `train.log_every` steps."""
    keep_every: int = 0
    """Checkpoints of steps that are multiples of this stay for good; 0 = none does."""
    keep_best: int = 0
    """So many with the best `metric` stay, too."""
    metric: str = "loss"
    """Name of a metric that the steps report (metrics.jsonl; speeds are none), as it was in the last record before the
    checkpoint."""
    best: str = "lowest"
    """Which values of `metric` are: "lowest" or "highest"."""
    local: str = ""
    """Folder on a disk of each machine for frequent checkpoints, e.g. /mnt/disks/local; empty = there are none. They
    are read by the same processes on the same mesh; whatever else happens takes those in the run's folder."""
    local_minutes: float = 10.0
    """Between two of them."""
    verify: bool = True
    """Checksums are compared before a checkpoint is read, each process its share of the files."""
    strict: bool = False
    """A damaged checkpoint stops the run; otherwise it is put aside and the one before is taken."""
    save_seconds: float = 1800.0
    """Writing or reading one may take; 0 = forever. See recovery.step_seconds."""
    max_failed_saves: int = 3
    """Attempts in a row that may fail (a full disk, storage that is away) before the run stops; jobs of several
    processes stop at the first, to start again together."""

    def faults(self) -> Iterator[Fault]:
        """The rules these settings break."""
        for name in ("minutes", "keep_every", "keep_best", "save_seconds", "max_failed_saves"):
            if getattr(self, name) < 0:
                yield Fault(name, getattr(self, name), "must not be negative", "use 0")
        if self.best not in ORDERS:
            yield Fault("best", self.best, "is no order", f"use one of {ORDERS}")
        if url_rule(self.local):
            yield Fault("local", self.local, url_rule(self.local), "give a folder on a disk of each machine")
        if self.local and self.local_minutes <= 0:
            yield Fault("local_minutes", self.local_minutes, "must be positive", "use e.g. 10")


NEWEST_ALONE = CheckpointConfig()

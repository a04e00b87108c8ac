"""What to change when a program does not fit: the settings that move most of what is too much, with numbers."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from nextflow_jax.aot.compiling import Memory

MARGIN = 0.10
"""Share of the memory that should stay free: other versions of the compiler and fragments take some."""


@dataclasses.dataclass(frozen=True)
class Situation:
    """A training step that does not fit, or not with room."""

    memory: Memory
    limit: int
    """Bytes that a device has."""
    mesh: Mapping[str, int]
    leaner: Mapping[str, Sequence[str]]
    """Field -> policies that need less memory than its own, the least first."""
    batch_size: int
    accumulate: int

    @property
    def rows(self) -> int:
        """Rows of a batch's part on each device that holds rows of its own."""
        blocks = self.mesh["slice"] * self.mesh["data"] * self.mesh["fsdp"]
        return self.batch_size // (blocks * self.accumulate)


def advise(situation: Situation) -> list[str]:
    """Changes to try, the cheapest in speed first; each is one on its own. Empty: none of these would do.

    How much memory they leave is reckoned from two figures of the program as it is: its arguments do not depend on the
    batch, and all else is taken to grow with the rows of a device.
    """
    return [*_other_rows(situation), *_other_remat(situation), *_other_mesh(situation)]


def _room(situation: Situation) -> float:
    """Bytes for everything but the arguments."""
    return (1 - MARGIN) * situation.limit - situation.memory.arguments


def _other_rows(situation: Situation) -> list[str]:
    """As many rows at once as there is room for."""
    activations = situation.memory.peak - situation.memory.arguments
    if _room(situation) <= 0 or situation.rows < 2 or activations <= 0:
        return []
    most = _room(situation) * situation.rows / activations
    parts = next((n for n in range(2, situation.rows + 1) if situation.rows % n == 0 and situation.rows / n <= most), 0)
    if not parts:
        return []
    accumulate, batch = situation.accumulate * parts, situation.batch_size // parts
    return [f"--config.train.accumulate={accumulate} (the same batch in parts) or --config.train.batch_size={batch}"]


def _other_remat(situation: Situation) -> list[str]:
    """The policies that keep less."""
    changes = [f"--config.{field}={names[-1]}" for field, names in situation.leaner.items() if names]
    return [" ".join(changes) + " (keeps less there)"] if changes and _room(situation) > 0 else []


def _other_mesh(situation: Situation) -> list[str]:
    """More devices to share the state, or a row."""
    mesh, memory = situation.mesh, situation.memory
    if mesh["data"] > 1:
        freed = memory.arguments * (1 - 1 / mesh["data"])
        change = f"--config.mesh.data=1 --config.mesh.fsdp={mesh['data'] * mesh['fsdp']}"
        return [f"{change} (about {freed / 2**30:.1f} GiB less state on a device)"]
    if _room(situation) <= 0:
        times = 2 ** math.ceil(math.log2(memory.arguments / (0.5 * situation.limit)))
        return [f"{times} times as many chips on --config.mesh.fsdp or --config.mesh.tensor: the state alone fills one"]
    if situation.rows == 1:
        return [f"--config.mesh.context={2 * mesh['context']} (devices that share a row), or more chips"]
    return []

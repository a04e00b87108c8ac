"""What to change when a program does not fit: settings that would make it fit, each reckoned against the limit."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from nextflow_jax.aot.compiling import Memory

MARGIN = 0.10
"""Share of the memory that should stay free: other versions of the compiler and fragments take some."""

TIMES = tuple(2**n for n in range(1, 12))
"""How many times as many chips are tried."""


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
    gradients: int
    """Bytes of a device's part of the gradients."""

    @property
    def blocks(self) -> int:
        """Devices, or groups that share rows, that hold rows of their own."""
        return self.mesh["slice"] * self.mesh["data"] * self.mesh["fsdp"]

    @property
    def rows(self) -> int:
        """Rows of a batch's part on each of them."""
        return self.batch_size // (self.blocks * self.accumulate)

    def fits(self, rows: int | float, share: int = 1) -> bool:
        """Whether so many rows at once on a device would fit, with so many times more devices that share the state.

        Reckoned from figures of the program as it is: arguments and gradients do not depend on the rows, and all else
        is taken to grow with them.
        """
        fixed = self.memory.arguments + min(self.gradients, self.memory.peak - self.memory.arguments)
        growing = (self.memory.peak - fixed) * rows / self.rows
        return fixed / share + growing <= (1 - MARGIN) * self.limit


def advise(situation: Situation) -> list[str]:
    """Changes to try, the cheapest in speed first; each is one on its own. Empty: none of these would do.

    All are reckoned to fit, but for leaner policies: only compiling tells what they keep. More chips are named where
    nothing on those there are is reckoned to fit.
    """
    same_chips = [*_fewer_rows(situation), *_other_mesh(situation), *_shared_rows(situation)]
    policies = [*_other_remat(situation)]
    return [*same_chips[:1], *policies, *same_chips[1:]] if same_chips else [*policies, *_more_chips(situation)]


def _fewer_rows(situation: Situation, share: int = 1) -> Iterator[str]:
    """As many rows at once as there is room for."""
    for rows in _divisors(situation.rows)[1:]:
        if situation.fits(rows, share):
            parts = situation.rows // rows
            same = f"--config.train.accumulate={situation.accumulate * parts} (the same batch in parts)"
            yield f"{same} or --config.train.batch_size={situation.batch_size // parts}"
            return


def _other_remat(situation: Situation) -> Iterator[str]:
    """The policies that keep less, where anything but activations has room."""
    changes = [f"--config.{field}={names[-1]}" for field, names in situation.leaner.items() if names]
    if changes and situation.fits(0):
        yield " ".join(changes) + " (keeps less there; compiling tells how much)"


def _other_mesh(situation: Situation) -> Iterator[str]:
    """The devices as they are, which all share the state; with fewer rows at once if that alone does not do."""
    data = situation.mesh["data"]
    if data == 1:
        return
    freed = situation.memory.arguments * (1 - 1 / data)
    change = f"{_sharing_all(situation, 1)} (about {freed / 2**30:.1f} GiB less state on a device)"
    if situation.fits(situation.rows, data):
        yield change
    else:
        yield from (f"{change} together with {rows}" for rows in _fewer_rows(situation, data))


def _shared_rows(situation: Situation) -> Iterator[str]:
    """Several of the devices as they are share each row, where none has more than one."""
    fsdp, context = situation.mesh["fsdp"], situation.mesh["context"]
    if situation.rows > 1:
        return
    for devices in _divisors(fsdp)[-2::-1]:
        if situation.fits(1 / devices):
            parts = f"--config.train.accumulate={situation.accumulate * devices}"
            mesh = f"--config.mesh.fsdp={fsdp // devices} --config.mesh.context={context * devices}"
            yield f"{mesh} {parts} (devices that share a row)"
            return


def _more_chips(situation: Situation) -> Iterator[str]:
    """The least number of chips, a power of two times those there are, that share state and batch; or also rows."""
    data, per_block = situation.mesh["data"], situation.rows * situation.accumulate
    for times in TIMES:
        left = math.ceil(per_block / times)
        rows = next((rows for rows in _divisors(left) if situation.fits(rows, data * times)), 0)
        if rows:
            batch = _batch(situation, situation.blocks * times * left, left // rows)
            yield f"{times} times as many chips with {_sharing_all(situation, times)}{batch}"
            return
    for times in TIMES:
        if situation.fits(1 / times, data * times):
            batch = _batch(situation, situation.batch_size, per_block)
            context = f"--config.mesh.context={situation.mesh['context'] * times}{batch} (devices that share a row)"
            yield f"{times} times as many chips with {_sharing_all(situation, 1)} {context}"
            return


def _sharing_all(situation: Situation, times: int) -> str:
    fsdp = situation.mesh["data"] * situation.mesh["fsdp"] * times
    return f"--config.mesh.data=1 --config.mesh.fsdp={fsdp}"


def _batch(situation: Situation, batch_size: int, accumulate: int) -> str:
    """The flags of those that differ from what they are."""
    wanted = {"batch_size": batch_size, "accumulate": accumulate}
    return "".join(f" --config.train.{name}={n}" for name, n in wanted.items() if n != getattr(situation, name))


def _divisors(number: int) -> list[int]:
    """The largest first."""
    return [n for n in range(number, 0, -1) if number % n == 0]

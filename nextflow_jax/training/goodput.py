"""Goodput: every second of a run's wall clock belongs to one phase, across restarts; what part of it made steps.

`goodput.jsonl` in the run's folder only ever grows: an entry says how the seconds between two moments were spent, and
which steps were done in them. What lies between the last entry of an attempt that died and the first of the next is
`restart`; seconds of steps that a later entry does again are `lost`. (The idea of goodput and its parts: Google's ML
Goodput Measurement library.)
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax

GOODPUT_FILE = "goodput.jsonl"

PHASES = {
    "init": "reading inputs, making the state; and what has no other name",
    "compile": "tracing and compiling",
    "restore": "reading a checkpoint",
    "step": "the devices work on steps that last",
    "data_wait": "the devices have nothing to do: the next batch is not there",
    "checkpoint": "the loop stands still for a checkpoint",
    "profile": "starting a profile window and writing it",
    "lost": "steps that were done again, because the run went back to a checkpoint",
    "restart": "no attempt was running, or it died before it wrote down what it did",
}
"""Phase -> what its seconds are; they add up to the wall clock. Goodput is the share of "step"."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A stretch of one attempt."""

    attempt: int
    """Counted from 1."""
    begin: float
    """Unix time in seconds."""
    end: float
    first: int
    """Steps that the state held at its begin."""
    last: int
    """Steps that the state held at its end."""
    seconds: Mapping[str, float]
    """Phase -> seconds; together `end` - `begin`."""


@dataclasses.dataclass(frozen=True)
class Account:
    """Where the wall clock went."""

    seconds: Mapping[str, float]
    """One of every phase of PHASES."""
    attempts: int

    @property
    def wall(self) -> float:
        """Seconds from the first entry's begin to the last one's end."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """Share of the wall clock in which steps were done that last; 0 before there is any."""
        return self.seconds["step"] / self.wall if self.wall else 0.0

    def plus(self, seconds: Mapping[str, float]) -> "Account":
        """This account with further seconds by phase."""
        return Account({name: value + seconds.get(name, 0.0) for name, value in self.seconds.items()}, self.attempts)

    def describe(self) -> str:
        """One line: goodput, and the phases that took at least a thousandth of the time."""
        shares = {name: value / max(self.wall, 1e-9) for name, value in self.seconds.items()}
        parts = ", ".join(f"{name} {share:.1%}" for name, share in shares.items() if share >= 1e-3)
        times = f" in {self.attempts} attempts" if self.attempts > 1 else ""
        return f"goodput {self.goodput:.1%} of {self.wall:.0f} s{times}: {parts}"


def account(entries: Iterable[Entry]) -> Account:
    """Adds entries up, in the order in which they were written.

    Step time of an entry is spread evenly over its steps; where a later entry begins before the end of it, that of the
    steps after that point is lost. Clocks that went backwards between attempts make no negative restart.
    """
    seconds = dict.fromkeys(PHASES, 0.0)
    standing: list[tuple[int, int, float]] = []
    attempts, end = 0, None
    for entry in entries:
        for name, value in entry.seconds.items():
            seconds[name] += value
        if end is not None:
            seconds["restart"] += max(0.0, entry.begin - end)
        end, attempts = entry.end, max(attempts, entry.attempt)
        lost = _drop_after(standing, entry.first)
        seconds["lost"] += lost
        seconds["step"] -= lost
        standing.append((entry.first, entry.last, entry.seconds.get("step", 0.0)))
    return Account(seconds, attempts)


def _drop_after(standing: list[tuple[int, int, float]], step: int) -> float:
    """Takes steps after `step` from the (first, last, seconds of steps) that stand; returns their seconds."""
    dropped = 0.0
    while standing and standing[-1][1] > step:
        first, last, seconds = standing.pop()
        kept = seconds * max(0, step - first) / max(1, last - first)
        dropped += seconds - kept
        if first < step:
            standing.append((first, step, kept))
    return dropped


def read_entries(workdir: str | os.PathLike) -> list[Entry]:
    """The entries of a run's goodput.jsonl; lines cut short by a kill are left out."""
    path = pathlib.Path(workdir) / GOODPUT_FILE
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            entries.append(Entry(**json.loads(line)))
    return entries


class Ledger:
    """Keeps the time of one attempt and writes it down; it begins in the phase "init".

    Args:
      workdir: the run's folder, with the entries of earlier attempts; only the first process of a job writes.
      clock: seconds that never go backwards.
      wall: Unix time in seconds; read once.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        clock: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._path = workdir / GOODPUT_FILE
        self._clock = clock
        self._lap = self._begin = clock()
        self._offset = wall() - self._begin
        self._phase = "init"
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._written = dict(self._spent)
        self._first = 0
        self._entries = read_entries(workdir)
        self._attempt = max((entry.attempt for entry in self._entries), default=0) + 1
        self._base, self._base_spent = account(self._entries), self._spent

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Seconds in this context are of phase `name`; those of a phase around it stand still meanwhile."""
        before = self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def charge(self, name: str, seconds: float) -> None:
        """Moves seconds of the present phase, which are known only afterwards, to phase `name`."""
        self._spent[self._phase] -= seconds
        self._spent[name] += seconds

    def spent(self) -> dict[str, float]:
        """Seconds of this attempt so far, by phase."""
        self._switch(self._phase)
        return dict(self._spent)

    def stand_at(self, step: int) -> None:
        """Says how many steps the state holds that was just made or restored.

        Going back in the middle of an attempt, `write` what was done before.
        """
        self._first = step
        self.write(step)
        self._base, self._base_spent = account(self._entries), self._written

    def write(self, step: int) -> None:
        """Writes down everything since the last call; the state now holds `step` steps."""
        spent = self.spent()
        seconds = {name: round(spent[name] - self._written[name], 6) for name in PHASES}
        begin, end = round(self._begin + self._offset, 6), round(self._lap + self._offset, 6)
        seconds = {name: value for name, value in seconds.items() if value}
        entry = Entry(self._attempt, begin, end, self._first, step, seconds)
        self._begin, self._first, self._written = self._lap, step, spent
        self._entries.append(entry)
        # Asked only now: a ledger is older than the job's processes know of each other.
        if jax.process_index() == 0:
            _append_line(self._path, json.dumps(dataclasses.asdict(entry)))

    def account(self) -> Account:
        """Of all attempts up to now."""
        spent = self.spent()
        return self._base.plus({name: spent[name] - self._base_spent[name] for name in PHASES})

    def _switch(self, name: str) -> str:
        """Books the time since the last call under the present phase and goes to phase `name`; returns the former."""
        now = self._clock()
        self._spent[self._phase] += now - self._lap
        self._lap, before, self._phase = now, self._phase, name
        return before


def _append_line(path: pathlib.Path, line: str) -> None:
    """Appends a line; one that a kill cut short before it ends first."""
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        file.write(f"{line}\n".encode())

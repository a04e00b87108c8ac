"""The memory of a command and of all processes that it starts, looked at again and again while it runs (Linux)."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Sample:
    """One look."""

    seconds: float
    cpu_seconds: float
    """Of the processes that run and those that they have waited for."""
    resident: int
    """Bytes; what processes share, files they mapped included, counts in each."""
    private: int
    """Bytes that are no file's and in no shared memory: what a leak makes grow."""
    processes: int


def run_watched(command: Sequence[str], every: float, record: pathlib.Path, **options: Any) -> int:
    """Runs a command to its end.

    Args:
      command: and its arguments.
      every: seconds between two looks.
      record: file of JSON lines that they are appended to; times go on from those of a run that was killed.
      options: of subprocess.Popen.

    Returns:
      Its exit status.
    """
    before = read_samples(record)
    seconds = before[-1].seconds if before else 0.0
    cpu = max((sample.cpu_seconds for sample in before), default=0.0)
    start = time.perf_counter()
    with subprocess.Popen(command, **options) as process, open(record, "a", encoding="utf-8") as file:
        while True:
            now = look(process.pid)
            shown = dataclasses.replace(
                now, seconds=seconds + time.perf_counter() - start, cpu_seconds=cpu + now.cpu_seconds
            )
            if now.processes:
                print(json.dumps(dataclasses.astuple(shown)), file=file, flush=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(every)


def read_samples(record: pathlib.Path) -> list[Sample]:
    """What runs of a command have recorded so far."""
    if not record.is_file():
        return []
    return [Sample(*json.loads(line)) for line in record.read_text(encoding="utf-8").splitlines()]


def look(root: int) -> Sample:
    """The memory of a process and its descendants now."""
    resident = private = processes = ticks = 0
    for process in _tree(root):
        try:
            folder = pathlib.Path(f"/proc/{process}")
            lines, stat = (folder / "status").read_text().splitlines(), (folder / "stat").read_text()
        except OSError:  # it ended
            continue
        fields = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "RssAnon"))}
        resident += 1024 * int(fields.get("VmRSS", 0))
        private += 1024 * int(fields.get("RssAnon", 0))
        ticks += sum(map(int, stat.rpartition(")")[2].split()[11:15]))
        processes += bool(fields)
    return Sample(0.0, ticks / os.sysconf("SC_CLK_TCK"), resident, private, processes)


def summarise(samples: Sequence[Sample]) -> dict[str, Any]:
    """MiB in the first and the last tenth of the time and at most, and how fast they grow in the last two thirds.

    The growth is that of a fitted line over a whole run's time, so that what a start allocates is not in it.
    """
    if len(samples) < 3:
        return {}
    seconds = np.asarray([sample.seconds for sample in samples])
    settled = seconds >= seconds[-1] / 3
    summary: dict[str, Any] = {"samples": len(samples), "processes": max(sample.processes for sample in samples)}
    for name, shown in (("resident", "rss"), ("private", "private")):
        values = np.asarray([getattr(sample, name) for sample in samples]) / MIB
        tenth = max(1, len(values) // 10)
        slope = np.polyfit(seconds[settled], values[settled], 1)[0] if settled.sum() > 2 else 0.0
        summary[f"{shown}_mib"] = {
            "first_tenth": round(float(np.median(values[:tenth]))),
            "last_tenth": round(float(np.median(values[-tenth:]))),
            "most": round(float(values.max())),
            "growth": round(float(slope * seconds[-1])),
        }
    return summary


def _tree(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = pathlib.Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry))
    found, todo = [], [root]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found

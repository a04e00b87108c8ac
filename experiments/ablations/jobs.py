"""What the programs that run ablations share: commands that leave a result, and tables of means over seeds."""

import json
import pathlib
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = "seconds.json"


class Job(NamedTuple):
    """One command, and the file or folder that stands there when it is finished."""

    command: tuple[str, ...]
    result: pathlib.Path
    to_file: bool = False
    """Whether the result is what the command prints."""


def run_all(jobs: Iterable[Job], dry_run: bool) -> bool:
    """Runs what is not finished, or prints it; whether everything is finished or printed."""
    for job in jobs:
        if job.result.exists():
            continue
        if dry_run:
            print(shlex.join(job.command))
        elif not _run(job):
            print(f"not finished: {shlex.join(job.command)}; run this again to continue", file=sys.stderr)
            return False
    return True


def command(name: str, *arguments: object) -> tuple[str, ...]:
    """The command line of an entry point."""
    return (sys.executable, "-m", f"nextflow_jax.{name}", *map(str, arguments))


def training(config: str, workdir: pathlib.Path, *extra: str) -> Job:
    """The training run of an experiment; finished when its last checkpoint is there."""
    from nextflow_jax.config import load_experiment

    steps = load_experiment(str(ROOT / config)).train.steps
    return Job(command("train", "--config", config, "--workdir", workdir, *extra), workdir / "checkpoints" / str(steps))


def read(path: pathlib.Path) -> dict:
    """A JSON file's content, {} when there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def mean(values: Sequence[float], digits: int = 2) -> str:
    """Mean and, of several, standard deviation; empty for no values."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _run(job: Job) -> bool:
    """Runs a command and adds its seconds to the folder's; whether it left its result."""
    print(f"== {shlex.join(job.command)}", file=sys.stderr, flush=True)
    begin = time.perf_counter()
    done = subprocess.run(job.command, cwd=ROOT, stdout=subprocess.PIPE if job.to_file else None, text=True)
    if "--workdir" in job.command and not job.to_file:
        workdir = pathlib.Path(job.command[job.command.index("--workdir") + 1])
        _add_seconds(workdir / SECONDS, job.command[2], time.perf_counter() - begin)
    if done.returncode == 0 and job.to_file:
        job.result.write_text(done.stdout, encoding="utf-8")
    return done.returncode == 0 and job.result.exists()


def _add_seconds(path: pathlib.Path, name: str, seconds: float) -> None:
    if path.parent.is_dir():
        known = read(path)
        path.write_text(json.dumps({**known, name: known.get(name, 0.0) + seconds}), encoding="utf-8")

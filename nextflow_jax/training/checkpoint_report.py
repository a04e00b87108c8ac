"""`python -m nextflow_jax.training.checkpoint`: lists a run's checkpoints, looks into one, averages several."""

import argparse
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nextflow_jax import command
from nextflow_jax.errors import UserError
from nextflow_jax.training.averaging import AVERAGED, average_checkpoints
from nextflow_jax.training.checkpoint import (
    Checkpoints,
    Position,
    checkpoint_steps,
    read_meta,
    saved_arrays,
    split_path,
    step_folder,
)
from nextflow_jax.training.checkpoint_files import damage, is_checked, size_text, tree_bytes
from nextflow_jax.training.metrics import read_metrics
from nextflow_jax.training.saving import is_storage_error
from nextflow_jax.training.state import TrainState

DESCRIPTION = """\
Lists the checkpoints in a run's folder: step, size, when it was written, whether checksums lie beside it, the loss
logged last before it. Then the newest, or that of --step: what it is of, and bytes by collection."""

_SHOWN_METRICS = ("loss", "grad_norm", "learning_rate")


def main(arguments: Sequence[str]) -> None:
    """Reports on checkpoints, or averages them; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m nextflow_jax.training.checkpoint",
        description=DESCRIPTION,
        epilog="exit status: 0 done, 1 bad input or a damaged checkpoint (with --verify), 2 usage",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "workdir", type=command.folder, metavar="WORKDIR", help="the run's folder, or one of its checkpoints"
    )
    parser.add_argument("--step", type=int, help="which checkpoint; the newest when not given")
    parser.add_argument("--arrays", action="store_true", help="every array: name, dtype, shape, bytes")
    parser.add_argument("--show_config", action="store_true", help="the configuration it was saved with, as JSON")
    parser.add_argument("--verify", action="store_true", help="compare the checksums of every file of all checkpoints")
    parser.add_argument("--average", type=int, metavar="N", help="write the mean of it and the N - 1 before to --out")
    parser.add_argument(
        "--out", type=command.folder, metavar="DIR", help="of --average: a run's folder with one checkpoint"
    )
    options = parser.parse_args(list(arguments))
    if (options.average is None) != (options.out is None):
        parser.error("--average and --out go together")
    workdir, step = split_path(options.workdir)
    if options.step is not None and step not in (None, options.step):
        parser.error(f"--step {options.step}: {options.workdir} is of another step")
    step = options.step if step is None else step
    if options.average is not None:
        print(write_average(workdir, options.average, step, options.out))
        return
    meta = read_meta(workdir, step)
    for line in [*list_checkpoints(workdir), "", *describe(workdir, meta, options.arrays)]:
        print(line)
    if options.show_config:
        print(json.dumps(meta["config"], indent=2))
    if options.verify:
        _verify(workdir)


def list_checkpoints(workdir: str | pathlib.Path) -> Iterator[str]:
    """A line for every checkpoint, oldest first."""
    records = read_metrics(workdir)
    for step in checkpoint_steps(workdir):
        folder = step_folder(workdir, step)
        written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(folder.stat().st_mtime))
        before = [record for record in records if record["step"] <= step]
        shown = [f"{name} {before[-1][name]:.6g}" for name in _SHOWN_METRICS if before and before[-1].get(name)]
        sums = "checksums" if is_checked(folder) else "no checksums"
        yield "  ".join([f"step {step}", size_text(tree_bytes(folder)), written, sums, ", ".join(shown)]).rstrip()


def describe(workdir: str | pathlib.Path, meta: dict[str, Any], arrays: bool) -> Iterator[str]:
    """What one checkpoint is of and holds."""
    config, step = meta["config"], meta["step"]
    yield f"step {step}: {config['kind']} {config['name']!r}, format {meta['format']}"
    for name, value in sorted(meta["fingerprints"].items()):
        yield f"  {name}: {value}"
    if AVERAGED in meta:
        yield f"  the mean of steps {', '.join(map(str, meta[AVERAGED]))}"
    saved = saved_arrays(workdir, step)
    groups: dict[tuple[str, str], list[int]] = {}
    for name, leaf in saved.items():
        groups.setdefault((name.split("/")[0], str(leaf.dtype)), []).append(_bytes(leaf))
    for (collection, dtype), sizes in groups.items():
        yield f"  {collection}: {len(sizes)} arrays of {dtype}, {size_text(sum(sizes))}"
    for name, leaf in saved.items() if arrays else ():
        yield f"  {name}  {leaf.dtype}{tuple(leaf.shape)}  {_bytes(leaf):,}"


def write_average(workdir: str | pathlib.Path, count: int, step: int | None, out: str | pathlib.Path) -> str:
    """Writes the mean of checkpoints as a run with one checkpoint, which export and init_from read.

    Raises:
      UserError: as `average_checkpoints`; or `out` is a run already, or cannot be written.
    """
    if checkpoint_steps(out):
        raise UserError(f"--out {out}: has checkpoints already; choose another folder")
    mean = average_checkpoints(workdir, count, step)
    step = mean.meta["step"]
    state = TrainState(np.asarray(step, np.int32), mean.params, mean.variables, {}, {})
    more = {AVERAGED: mean.meta[AVERAGED]} if AVERAGED in mean.meta else {}
    try:
        with Checkpoints(out, 1, mean.config, mean.meta["fingerprints"], more=more) as checkpoints:
            checkpoints.save(step, state, Position(0))
            checkpoints.wait()
    except Exception as error:
        if not is_storage_error(error):
            raise
        raise UserError(f"--out {out}: cannot be written ({error}); make room, or choose another folder") from error
    return f"{out}: the mean of {count} checkpoints of {workdir} up to step {step}; it holds weights alone"


def _verify(workdir: str | pathlib.Path) -> None:
    problems = {step: damage(step_folder(workdir, step)) for step in checkpoint_steps(workdir)}
    damaged = [f"step {step}: {problem}" for step, problem in problems.items() if problem]
    if damaged:
        raise UserError("; ".join(damaged))
    unknown = [step for step in problems if not is_checked(step_folder(workdir, step))]
    without = f"; without checksums: {', '.join(map(str, unknown))}" if unknown else ""
    print(f"{len(problems) - len(unknown)} checkpoints are as they were written{without}")


def _bytes(leaf: Any) -> int:
    return int(np.prod(leaf.shape, dtype=np.int64)) * np.dtype(leaf.dtype).itemsize

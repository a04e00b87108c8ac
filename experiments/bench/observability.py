"""What watching and saving a run costs, in percent of the step: a decoder of the quickstart's size on this machine.

What it asks: whether metrics and checkpoints stay within 2% of step time. Steps of four programs take turns, so that
what else the machine does hits all alike: nothing measured and nothing fetched; everything as the loop does it
(norms, activations, metrics.jsonl, TensorBoard, goodput, memory, the profiler's question); norms in every step; the
residual stream in every step. Differences are of the same round; their mean and its standard error are given. Norms are
due once in `log_every` steps, so their share is divided by it.

Checkpoints: seconds that `save` blocks, and seconds of all cores that saving takes, over those of the steps between two
checkpoints. What the host does for each record is timed alone, too.

Command: `python -m experiments.bench.observability [--variants off,all --seconds 270]` (once before, so that the
compiled programs are in the cache)
Cost: 3 to 5 minutes on two cores, which nothing else may use: beside other programs the wall clock tells nothing.
Result: (two idle cores, jax 0.10.2, 1.5M parameters, 6 rows of 256, 184 ms a step, 719 rounds) "all, with records"
against "off": 0.07 +- 0.22% by the wall clock, 0.09 +- 0.18% by core seconds. A checkpoint blocks for 29 ms, 0.08% of
the 200 steps between two, and takes 0.43 core seconds, 0.68%. So both together stay within 1%.

On busy cores, before the metrics of a step came as one array (packed_metrics.py): 2.5 +- 0.5% by core seconds (95
rounds); after it 1.1 +- 0.5% (96 rounds). Norms once in 20 steps cost 0.0 +- 0.1%, activations in every step -1.2 +-
0.7% (80 rounds), which is none. A record of 120 metrics takes 3.5 ms, nearly all of it TensorBoard's, once in 20 steps.
"""

import argparse
import dataclasses
import io
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.bench.training import RandomRows, packed_rows
from nextflow_jax import compile_cache, sharding
from nextflow_jax.models.presets import decoder_preset
from nextflow_jax.training.checkpoint import Checkpoints, Position
from nextflow_jax.training.experiment import DecoderExperiment
from nextflow_jax.training.feed import FeedTotals
from nextflow_jax.training.goodput import Ledger
from nextflow_jax.training.memory import memory_in_use
from nextflow_jax.training.metrics import MetricsFiles, Window
from nextflow_jax.training.profile import ProfileConfig, Profiler
from nextflow_jax.training.program import StepProgram
from nextflow_jax.training.progress import Progress
from nextflow_jax.training.run_log import RunLog
from nextflow_jax.training.settings import TrainConfig
from nextflow_jax.training.state import StateLayout, init_state, make_layout, num_parameters
from nextflow_jax.training.step import CompiledStep, compile_step
from nextflow_jax.vocabulary import Vocabulary

ROWS, LENGTH = 6, 256
LOG_EVERY, CHECKPOINT_EVERY = 20, 200
"""Those of experiments/openmoji/quickstart.py's decoder, as the sizes are."""
VARIANTS = {"off": (0, False), "all": (LOG_EVERY, True), "norms": (1, False), "activations": (0, True)}
"""Norms every so many steps, and whether the residual stream is measured."""


@dataclasses.dataclass
class Variant:
    """A program with its own state."""

    compiled: CompiledStep
    layout: StateLayout
    state: Any
    seconds: list[float] = dataclasses.field(default_factory=list)
    busy: list[float] = dataclasses.field(default_factory=list)
    """Seconds of all cores that a step took: what other processes do disturbs them less."""

    def step(self, batch: Any) -> Any:
        """One step; returns its metrics, not waited for."""
        self.state, metrics = self.compiled.call(self.state, {}, batch)
        return metrics


def make_variant(batch: dict[str, np.ndarray], norms_every: int, activations: bool) -> Variant:
    """Compiles a variant and makes its state."""
    model = decoder_preset("small", Vocabulary(1500, 1024), 16, 6)
    settings = TrainConfig(batch_size=ROWS, log_every=LOG_EVERY, activations=activations)
    experiment = DecoderExperiment(model=model, train=settings)
    task = RandomRows(experiment, batch)
    mesh, rules = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1]), sharding.make_rules()
    layout = make_layout(task, experiment.optimizer, settings.steps, mesh, rules)
    compiled = compile_step(task, layout, 0, task.batch_specs()[0], norms_every=norms_every)
    return Variant(compiled, layout, init_state(task, layout, 0))


class Watching:
    """What the loop does around a step of the variant "all", checkpoints apart."""

    def __init__(self, variant: Variant, workdir: pathlib.Path) -> None:
        self.settings = TrainConfig(steps=10**6, batch_size=ROWS, log_every=LOG_EVERY)
        progress = Progress("bench", 0, self.settings.steps, io.StringIO())
        self.ledger = Ledger(workdir)
        self.ledger.stand_at(0)
        self.log = RunLog(
            workdir, self.settings, variant.layout, progress, 0, Window(), self.ledger, lambda *_: {"fill": 1.0}
        )
        self.profiler = Profiler(ProfileConfig(), workdir, print)
        self.program = StepProgram(variant.compiled, 1e9, ROWS * LENGTH)
        self.count = 0

    def step(self, variant: Variant, batch: Any) -> None:
        """One step, logged."""
        self.count += 1
        self.profiler.due(self.count)
        with self.ledger.phase("step"), jax.profiler.StepTraceAnnotation("train", step_num=self.count):
            metrics = variant.step(batch)
            self.log.add(self.count, metrics, self.program, FeedTotals())
        self.profiler.ends_with(self.count)


def take_turns(variants: dict[str, Variant], watching: Watching, batch: Any, seconds: float) -> None:
    """Steps of all variants in turn, until the time is over; the first rounds do not count."""
    end, rounds = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        names = list(variants)
        for name in names[rounds % len(names) :] + names[: rounds % len(names)]:
            begin, busy = time.perf_counter(), time.process_time()
            if name == "all":
                watching.step(variants[name], batch)
            else:
                jax.block_until_ready(variants[name].step(batch))
            variants[name].busy.append(time.process_time() - busy)
            variants[name].seconds.append(time.perf_counter() - begin)
        rounds += 1
    for variant in variants.values():
        del variant.seconds[:2], variant.busy[:2]


def difference(variant: Sequence[float], base: Sequence[float], share: float = 1.0) -> dict[str, float]:
    """By how much a step is longer, in percent of the base's, times `share`: mean over rounds without the extremes."""
    difference = np.sort(np.asarray(variant) - np.asarray(base))
    cut = len(difference) // 10
    kept = difference[cut : len(difference) - cut]
    scale = 100 * share / float(np.median(base))
    error = float(np.std(kept) / np.sqrt(len(kept)))
    return {"percent": round(scale * float(np.mean(kept)), 3), "standard_error": round(scale * error, 3)}


def checkpoint_cost(variant: Variant, batch: Any, workdir: pathlib.Path, repeats: int) -> dict[str, float]:
    """Seconds that a save blocks; seconds of all cores that it takes, its writing beside eight steps included."""
    usual = float(np.median(variant.busy))
    blocked, busy = [], []
    with Checkpoints(workdir, 2, {}, {}) as checkpoints:
        for step in range(1, repeats + 1):
            begin, before = time.perf_counter(), time.process_time()
            checkpoints.save(step, variant.state, Position(step))
            blocked.append(time.perf_counter() - begin)
            for _ in range(8):
                jax.block_until_ready(variant.step(batch))
            checkpoints.wait()
            busy.append(time.process_time() - before - 8 * usual)
    return {"blocked_s": float(np.median(blocked)), "cores_s": float(np.median(busy))}


def record_costs(watching: Watching, workdir: pathlib.Path) -> dict[str, float]:
    """Microseconds of what the host does for a record."""
    record = {"step": 1, **{f"metric_{i}": 0.5 for i in range(120)}}
    files = {board: MetricsFiles(workdir / f"board_{board}", 0, board) for board in (False, True)}
    work: dict[str, Callable[[], Any]] = {
        "metrics.jsonl": lambda: files[False].write(record),
        "metrics.jsonl and TensorBoard": lambda: files[True].write(record),
        "goodput": lambda: (watching.ledger.account(), watching.ledger.write(watching.count)),
        "memory": memory_in_use,
    }
    return {name: round(1e6 * _seconds(function), 1) for name, function in work.items()}


def _seconds(work: Callable[[], Any], repeats: int = 50) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def main() -> None:
    """Prints a JSON line for each kind of cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=110, help="of steps taking turns")
    parser.add_argument("--checkpoints", type=int, default=6)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="that take turns; off first")
    options = parser.parse_args()
    compile_cache.enable()
    vocabulary = decoder_preset("small", Vocabulary(1500, 1024), 16, 6).vocabulary
    batch = packed_rows(vocabulary, ROWS, LENGTH, 256)
    variants = {name: make_variant(batch, *VARIANTS[name]) for name in options.variants.split(",")}
    placed = jax.device_put(batch)
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        for board in (False, True):
            (workdir / f"board_{board}").mkdir()
        watching = Watching(variants.get("all", variants["off"]), workdir)
        take_turns(variants, watching, placed, options.seconds)
        base = variants["off"].seconds
        step = float(np.median(base))
        print(json.dumps({"parameters": num_parameters(variants["off"].state.params), "step_ms": 1e3 * step,
                          "rounds": len(base), "jax": jax.__version__}), flush=True)  # fmt: skip
        for name in list(variants)[1:]:
            share = 1 / LOG_EVERY if name == "norms" else 1.0
            wall = difference(variants[name].seconds, base, share)
            busy = difference(variants[name].busy, variants["off"].busy, share)
            print(json.dumps({"what": name, "wall": wall, "cores": busy}), flush=True)
        print(json.dumps({"what": "record, microseconds", **record_costs(watching, workdir)}), flush=True)
        cost = checkpoint_cost(variants["off"], placed, workdir, options.checkpoints)
        percent = 100 * cost["cores_s"] / (CHECKPOINT_EVERY * float(np.median(variants["off"].busy)))
        print(json.dumps({"what": "checkpoint", **cost, "percent": percent}), flush=True)


if __name__ == "__main__":
    main()

"""What do checkpoints and metrics cost a run on a CPU, does memory grow with saves, and how fast is a second start?

- overhead: the OpenMoji quickstart's decoder, STEPS steps with a checkpoint every 50 and a record every 20 against none
  but the last, in turn within one process after a warm-up; seconds of steps, waiting and saving from the run's ledger.
- soak: 60 checkpoints of 16 MiB of parameters, one after another, keep 2; resident memory after the tenth and the last.
- start: seconds from the start of the command to the first step's record, with an empty compile cache and again.

Command (SHARDS: of a smoke quickstart, `launch/quickstart.sh --smoke`; each part as a command of its own):

    python experiments/bench/checkpointing.py overhead --shards SHARDS [--steps 100]
    python experiments/bench/checkpointing.py soak
    python experiments/bench/checkpointing.py start --shards SHARDS

Cost: COST
Result: RESULT
"""

import argparse
import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from nextflow_jax import compile_cache
from nextflow_jax.config import load_experiment
from nextflow_jax.training.checkpoint import Checkpoints, Position
from nextflow_jax.training.experiment import prepare_experiment
from nextflow_jax.training.goodput import Ledger
from nextflow_jax.training.loop import train
from nextflow_jax.training.metrics import read_metrics
from nextflow_jax.training.state import TrainState
from nextflow_jax.training.tasks import make_task

ROOT = pathlib.Path(__file__).parents[2]
FILE = "experiments/openmoji/quickstart.py:decoder"
NEVER = 10**9


def overhead(options: argparse.Namespace) -> dict[str, object]:
    """Seconds of the loop with and without checkpoints and records."""
    compile_cache.enable()
    base = prepare_experiment(load_experiment(FILE, [f"pipeline.shards={options.shards}"]), jax.device_count())
    task = make_task(base)

    def seconds(steps: int, checkpoint_every: int, log_every: int) -> dict[str, float]:
        rhythm = {"steps": steps, "checkpoint_every": checkpoint_every, "log_every": log_every}
        settings = dataclasses.replace(base.train, **rhythm)
        with tempfile.TemporaryDirectory() as folder:
            ledger = Ledger(pathlib.Path(folder))
            experiment = dataclasses.replace(base, train=settings)
            train(experiment, task, pathlib.Path(folder), stream=io.StringIO(), ledger=ledger)
            return ledger.spent()

    seconds(5, NEVER, NEVER)
    both = {"without": (NEVER, NEVER), "with": (50, 20)}
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in both}
    for _ in range(options.repeats):
        for name, rhythm in both.items():
            spent[name].append(seconds(options.steps, *rhythm))
    # The last checkpoint is in both.
    loop = {
        name: min(sum(run[phase] for phase in ("step", "data_wait", "checkpoint")) for run in runs)
        for name, runs in spent.items()
    }
    extra = loop["with"] / loop["without"] - 1
    return {"steps": options.steps, "loop_seconds": loop, "extra": round(extra, 4), "phases": spent["with"][0]}


def soak(options: argparse.Namespace) -> dict[str, object]:
    """Resident memory over many saves."""
    sizes = []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, 2, {}, {}) as checkpoints:
        for step in range(1, options.saves + 1):
            params = {str(i): jax.random.normal(jax.random.key(step * 8 + i), (512, 1024)) for i in range(8)}
            checkpoints.save(step, TrainState(np.int32(step), params, {}, {}, {}), Position(step))
            checkpoints.wait()
            pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
            sizes.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
    return {
        "saves": options.saves,
        "rss_mib": {step: round(sizes[step - 1], 1) for step in (1, 10, 20, 40, options.saves)},
    }


def start(options: argparse.Namespace) -> dict[str, object]:
    """Seconds to the first step, cold and warm."""
    record: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "warm"):
            workdir = pathlib.Path(folder) / name
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "NEXTFLOW_JAX_CACHE": f"{folder}/cache"}
            command = [sys.executable, "-m", "nextflow_jax.train", "--config", FILE, "--workdir", str(workdir)]
            command += [f"--config.pipeline.shards={options.shards}", "--config.train.steps=1"]
            begin = time.time()
            subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
            record[name] = round(read_metrics(workdir)[0]["time"] - begin, 2)
            ledger = json.loads((workdir / "goodput.jsonl").read_text().splitlines()[0])
            record[f"{name}_phases"] = {phase: round(value, 2) for phase, value in ledger["seconds"].items()}
    return {**record, "warm_share": round(record["warm"] / record["cold"], 3)}


def main() -> None:
    """Does one part; prints a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("overhead", "soak", "start"))
    parser.add_argument("--shards")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--saves", type=int, default=60)
    options = parser.parse_args()
    part = {"overhead": overhead, "soak": soak, "start": start}[options.part]
    print(json.dumps({"part": options.part, **part(options)}), flush=True)


if __name__ == "__main__":
    main()

"""Does memory grow with checkpoints, and how fast is a second start? (What saving costs: observability.py.)

- soak: 200 checkpoints of 16 MiB of parameters, one after another, two of which stay; resident memory on the way.
- start: the OpenMoji quickstart's decoder; seconds from the start of the command to the first step's record, with an
  empty compile cache and again.

Command (SHARDS: of a smoke quickstart, `launch/quickstart.sh --smoke`; each part as a command of its own):

    python experiments/bench/checkpointing.py soak
    python experiments/bench/checkpointing.py start --shards SHARDS

Cost: COST
Result: RESULT
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from nextflow_jax.training.checkpoint import Checkpoints, Position
from nextflow_jax.training.metrics import read_metrics
from nextflow_jax.training.state import TrainState

ROOT = pathlib.Path(__file__).parents[2]
FILE = "experiments/openmoji/quickstart.py:decoder"


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
        "rss_mib": {step: round(sizes[step - 1], 1) for step in (1, 10, 50, 100, options.saves)},
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
    parser.add_argument("part", choices=("soak", "start"))
    parser.add_argument("--shards")
    parser.add_argument("--saves", type=int, default=200)
    options = parser.parse_args()
    part = {"soak": soak, "start": start}[options.part]
    print(json.dumps({"part": options.part, **part(options)}), flush=True)


if __name__ == "__main__":
    main()

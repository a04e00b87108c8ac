"""Does memory grow with checkpoints, and how fast is a second start? (What saving costs: observability.py.)

- soak: 200 checkpoints of 16 MiB of parameters, one after another, two of which stay; resident memory on the way.
- start: the OpenMoji quickstart's decoder; seconds from the start of the command to the first step's record, with an
  empty compile cache and again.

Command (SHARDS: of a smoke quickstart, `launch/quickstart.sh --smoke`; each part as a command of its own):

    python experiments/bench/checkpointing.py soak
    python experiments/bench/checkpointing.py start --config.pipeline.shards=SHARDS
    python experiments/bench/checkpointing.py start --config experiments/openmoji/quickstart.py:contrastive

and the last with `:tokenizer --config.teacher=DIR`, DIR the folder of a run of contrastive.

Cost: 2 CPU cores, soak about a minute (less on idle ones), start 20 s.
Result: (jax 0.10.2, Orbax 0.12.8, Python 3.11; start with nothing else running, soak of 120 saves on busy cores)
soak: 358 MiB after the first save, 444 after the 10th, 556 after the 50th, 561 after the 100th, 568 after the 120th: it
levels off. start, share of the warm start in the cold one:

                    cold s   warm s   of which compiling   share
    decoder            9.1      3.6                  1.5     40%
    tokenizer         18.9      6.3                  3.8     33%
    contrastive       17.0      5.2                  3.0     31%

(tokenizer: beside other programs.) 30% was wanted. Half of a warm start is importing and making data and state, the
"compiling" of one is tracing, lowering and loading programs from the cache; there is little to compile on a CPU. The
decoder's starts took 13.9 and 5.8 s before programs that compile in 0.05 s were kept, 11.8 and 4.7 before tokenizers
were read without being traced; that shortens both and leaves the share.
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
            command = [sys.executable, "-m", "nextflow_jax.train", "--workdir", str(workdir), "--config.train.steps=1"]
            command += ["--config", options.config, *options.overrides]
            begin = time.time()
            subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
            record[name] = round(read_metrics(workdir)[0]["time"] - begin, 2)
            ledger = json.loads((workdir / "goodput.jsonl").read_text().splitlines()[0])
            record[f"{name}_phases"] = {phase: round(value, 2) for phase, value in ledger["seconds"].items()}
    return {"config": options.config, **record, "warm_share": round(record["warm"] / record["cold"], 3)}


def main() -> None:
    """Does one part; prints a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("soak", "start"))
    parser.add_argument("--saves", type=int, default=200)
    parser.add_argument("--config", default="experiments/openmoji/quickstart.py:decoder")
    options, options.overrides = parser.parse_known_args()
    part = {"soak": soak, "start": start}[options.part]
    print(json.dumps({"part": options.part, **part(options)}), flush=True)


if __name__ == "__main__":
    main()

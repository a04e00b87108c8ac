"""Seconds and peak memory of multi-scale quantisation, codes searched in blocks and in one whole table of distances.

    python -m experiments.bench.quantizer [--level 1024] [--codes 32768] [--width 40] [--batches 1 4] [--runs 2]

(from the repository's root) prints one line of JSON a way and batch, then a table. Both ways walk all scales of a
square picture's schedule (nextflow_jax/vision/residual.py) on random features; they differ in the search alone:
"blocks" is what the quantizer does (nextflow_jax/vision/nearest.py), "whole" makes all distances of a scale at once, as
VAR's and TokenFlow's code does. Each runs in a process of its own, one after the other. `temporaries` is what the
compiled program asks for, `grown` how much the process's resident memory rose while it ran, at most; features (0.66 MB
a picture) and codes (5.2 MB) are in neither. Both ways must find the same codes: the digests printed say so.

--block sets the distances held at once a picture, for finding the best size on a machine; --top_k 10 also finds the
ten nearest codes, which self-correction draws from.

Cost: a minute on two CPU cores, 7 GB of memory.

Result: (the first command, two idle cores, jax 0.10.2)

    way      batch   seconds   tokens/s  temporaries MB  grown MB
    blocks       1      0.74     13,672            51.5     105.9
    whole        1      1.72      5,864         1,610.6   1,653.6
    blocks       4      5.33      7,573           205.7     321.0
    whole        4      6.64      6,073         6,442.5   6,493.7

with the same codes both ways. Why the gain in time is smaller at batch 4 was not looked into.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax.scales import LEVEL_SCALES, ScaleSchedule, level_schedule
from nextflow_jax.vision import residual
from nextflow_jax.vision.nearest import BLOCK, near_codes, nearest_codes

MODULE = "experiments.bench.quantizer"
WAYS = ("blocks", "whole")
SAMPLING_SECONDS = 0.002
"""Between two looks at the resident memory."""


def encode(schedule: ScaleSchedule, features: jax.Array, codes: jax.Array, block: int, top_k: int) -> jax.Array:
    """All codes of a batch [B, N], and the candidates for self-correction [B, N, top_k] beside them."""

    def quantise(k: int, rest: Any) -> tuple[jax.Array, jax.Array]:
        nearest = nearest_codes(rest, codes, block)
        found = nearest[..., None]
        if top_k:
            found = jnp.concatenate([found, near_codes(rest, codes, top_k, block)[1]], axis=-1)
        return codes[nearest], found.reshape(rest.shape[0], -1, 1 + top_k)

    with jax.default_matmul_precision("highest"):
        _, found = residual.encode_scales(schedule, features, quantise)
    return jnp.concatenate(found, axis=1)


def measure(way: str, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compiles and runs one way on one batch size, in this process."""
    schedule = level_schedule(arguments.level)
    generator = np.random.default_rng(0)
    shape = (batch, *schedule.final_grid, arguments.width)
    features, codes = (jnp.asarray(generator.normal(size=size), jnp.float32) for size in (shape, arguments.table))
    block = arguments.block if way == "blocks" else sys.maxsize
    program = jax.jit(encode, static_argnums=(0, 3, 4)).lower(schedule, features, codes, block, arguments.top_k)
    program = program.compile()
    found, grown, first = watched(lambda: program(features, codes))
    seconds = [first, *(watched(lambda: program(features, codes))[2] for _ in range(arguments.runs - 1))]
    tokens = batch * schedule.num_tokens
    return {
        "way": way,
        "batch": batch,
        "tokens": tokens,
        "seconds": min(seconds),
        "tokens_per_second": tokens / min(seconds),
        "temporaries_mb": program.memory_analysis().temp_size_in_bytes / 1e6,
        "grown_mb": grown / 1e6,
        "digest": hashlib.sha256(np.asarray(found).tobytes()).hexdigest()[:12],
    }


def watched(work: Callable[[], jax.Array]) -> tuple[jax.Array, int, float]:
    """What `work` makes, how many bytes the resident memory rose meanwhile, and its seconds."""
    before, peak, done = resident(), [0], threading.Event()

    def look() -> None:
        while not done.wait(SAMPLING_SECONDS):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=look)
    watcher.start()
    start = time.perf_counter()
    made = jax.block_until_ready(work())
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return made, max(0, peak[0] - before), seconds


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def in_own_process(way: str, batch: int) -> dict[str, Any]:
    """`measure` in a process that has done nothing else."""
    command = [sys.executable, "-m", MODULE, *sys.argv[1:], "--one", way, str(batch)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def table(rows: list[dict[str, Any]]) -> str:
    """The measurements, one line each."""
    lines = [f"{'way':<8}{'batch':>6}{'seconds':>10}{'tokens/s':>11}{'temporaries MB':>16}{'grown MB':>10}  codes"]
    for row in rows:
        numbers = f"{row['seconds']:>10.2f}{row['tokens_per_second']:>11,.0f}{row['temporaries_mb']:>16,.1f}"
        lines.append(f"{row['way']:<8}{row['batch']:>6}{numbers}{row['grown_mb']:>10,.1f}  {row['digest']}")
    return "\n".join(lines)


def main() -> None:
    """Measures every way on every batch size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--level", type=int, default=1024, choices=sorted(LEVEL_SCALES))
    parser.add_argument("--codes", type=int, default=2**15)
    parser.add_argument("--width", type=int, default=40, help="dimensions of a code")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 4), help="pictures at once")
    parser.add_argument("--runs", type=int, default=2, help="of each; the fastest counts")
    parser.add_argument("--block", type=int, default=BLOCK, help="distances held at once, a picture")
    parser.add_argument("--top_k", type=int, default=0, help="candidates for self-correction")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "BATCH"), help="measure this in this process, print JSON")
    arguments = parser.parse_args()
    arguments.table = (arguments.codes, arguments.width)
    if arguments.one:
        way, batch = arguments.one
        print(json.dumps(measure(way, int(batch), arguments)))
        return
    rows = []
    for batch in arguments.batches:
        for way in WAYS:
            rows.append(in_own_process(way, batch))
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()

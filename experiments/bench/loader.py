"""What the loader alone delivers at the 512 level, where its time goes, and what the small decoder takes.

What it asks: does the loader feed a training step, with how many threads or processes, and what do they cost in memory.
Documents are `table2_documents`, read with the pipeline of stage pretrain_512 (rows of 20,480 positions, scales
reweighted with alpha 0.9) in batches of 8 rows. A token is a position that is no padding. The small decoder trains
through the real loop, feed included, on rows of the same layout with a vocabulary that suits it, and on rows of 1,152
positions, where it is quickest; then once more with a loader that is too slow on purpose, which the metrics must tell.

Command: `python -m experiments.bench.loader` (--parts read,parts, then --parts train, each with the machine to itself)
Cost: 50 and 100 s on two cores, 0.5 GiB.
Result (two cores of an AMD EPYC, Python 3.11, NumPy 2.4.6, grain 0.2.18, files in the page cache):

    threads  workers    tokens/s    rows/s   MiB/s   first batch s   MiB, this process + workers
          0        0   6,547,550     319.9     475            0.05   258
          1        0   7,169,581     350.3     520            0.05   300
          2        0   5,523,732     269.9     401            0.16   340
          1        1   4,267,717     208.5     310            2.1    341 + 170
          1        2   3,891,391     190.1     282            2.6    341 + 167 + 168
          2        2   4,479,415     218.9     325            2.4    343 + 195 + 181

    ms a row in one thread: plan 0.11, read and decode 1.46 (decode 0.95), check indices 0.08, flatten 1.79,
                            pack the row 0.45, stack the batch 0.25

    small decoder on                  tokens/s   step ms   data_wait   batches_ready
    rows of the 512 level                2,060      9943       0.000             2.0
    short rows                           5,369       858       0.000             2.0
    short rows, loader too late          2,829      1629       0.383             0.0

33 times the 200,000 tokens/s asked for, and 1,200 times what the small decoder takes where it is quickest. A second
thread does not pay here, nor do worker processes on two cores: what they build is copied through shared memory, 12 MiB
a batch. They are for machines where the training process leaves cores idle. Before `flatten` wrote in place it took
three times as long (167 us of CPU time a document, now 59).
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator, Sequence

import numpy as np

from experiments.bench.shard_training import small_experiment, train_on
from experiments.bench.table2_documents import (
    SMALL_CODES,
    SMALL_TEXT,
    Shape,
    level_shape,
    mixed_documents,
    toy_shape,
    write_shards,
)
from experiments.nextflow.decoder import AT_512, LEVELS
from nextflow_jax import sequence
from nextflow_jax.data.mixture import MixtureConfig
from nextflow_jax.data.pipeline import PipelineConfig, make_batches, make_plan
from nextflow_jax.data.records import decode, encode
from nextflow_jax.data.segments import check_indices, to_segments
from nextflow_jax.data.shards import ShardSet, open_shards
from nextflow_jax.errors import run_entry_point
from nextflow_jax.sequence import SequenceConfig

LEVEL = 512
BATCH = 8
DOCUMENTS = 6000
WAYS = ((0, 0), (1, 0), (2, 0), (1, 1), (1, 2), (2, 2))
"""(reader threads, worker processes)."""
TOY_ROW = 1152
TRAINED = {"rows of the 512 level": (LEVELS[LEVEL].row_length, 1, 4), "short rows": (TOY_ROW, 4, 12)}
"""Rows for the small decoder: their length, how many a step, steps of which the second half counts."""


def main(arguments: Sequence[str]) -> None:
    """Prints one JSON object a measurement."""
    parser = argparse.ArgumentParser("python -m experiments.bench.loader", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="to read for, each way (%(default)s)")
    parser.add_argument("--parts", default="read,parts,train", help="which to measure (%(default)s)")
    flags = parser.parse_args(arguments)
    measures = {"read": lambda folder: measure_ways(folder, flags.seconds), "parts": measure_parts,
                "train": measure_training}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for part in flags.parts.split(","):
            measures[part](pathlib.Path(folder))


def measure_ways(folder: pathlib.Path, seconds: float) -> None:
    """Prints the rate of every way to read ahead."""
    shards = _shards(folder / "level", level_shape(LEVEL), DOCUMENTS)
    for threads, workers in WAYS:
        config = pipeline(shards, threads, workers)
        begin = time.perf_counter()
        batches = make_batches(config, shards, "train", 0, BATCH, 0, 0, 1)
        batch = next(batches)
        start_seconds = time.perf_counter() - begin
        for _ in range(2 * config.prefetch_batches):  # what was built before the clock started
            next(batches)
        rows, tokens, elapsed = drain(batches, seconds)
        line = {
            "reader_threads": threads,
            "workers": workers,
            "tokens_per_s": round(tokens / elapsed),
            "rows_per_s": round(rows / elapsed, 1),
            "mib_per_s": round(rows / BATCH * sum(array.nbytes for array in batch.values()) / elapsed / 2**20),
            "first_batch_s": round(start_seconds, 2),
            "process_mib": round(memory_mib(os.getpid())),
            "workers_mib": [round(memory_mib(child)) for child in _workers()],
        }
        print(json.dumps(line), flush=True)
        if workers:
            batches.close()


def measure_parts(folder: pathlib.Path) -> None:
    """Prints the milliseconds a row that each part of building it takes in one thread."""
    shards = _shards(folder / "level", level_shape(LEVEL), DOCUMENTS)
    config, family, vocabulary = pipeline(shards, 0, 0), shards.manifest.schedule_family, shards.manifest.vocabulary
    clock = Clock()
    with clock("plan"):
        plan = make_plan(config, shards, "train", 0, BATCH)
        rows = [row for n in range(config.window_batches) for row in plan.batch(n)]
    source = shards.source("train")
    for start in range(0, len(rows), BATCH):
        arrays = []
        for row in rows[start : start + BATCH]:
            with clock("read and decode"):
                documents = [source[record] for record in row.records.tolist()]
            as_bytes = [encode(document) for document in documents]
            with clock("decode alone"):
                documents = list(map(decode, as_bytes))
            with clock("check indices"):
                for document in documents:
                    check_indices(document, vocabulary)
            with clock("flatten"):
                segments = [to_segments(each, family, response_only=False, last_scale_context=False)
                            for each in documents]  # fmt: skip
                segments = [sequence.drop_condition(each) if dropped else each
                            for each, dropped in zip(segments, row.dropped)]  # fmt: skip
                flat = [sequence.flatten(each, vocabulary, config.sequence) for each in segments]
            with clock("pack the row"):
                arrays.append(sequence.pack_row(flat, config.row_length, vocabulary).arrays())
        with clock("stack the batch"):
            _ = {name: np.stack([each[name] for each in arrays]) for name in arrays[0]}
    print(json.dumps({"ms_a_row": {name: round(1000 * spent / len(rows), 2) for name, spent in clock.spent.items()}}))


def measure_training(folder: pathlib.Path) -> None:
    """Prints what the small decoder takes of the loader, and what the metrics say of a loader that is too slow."""
    shapes = {
        "rows of the 512 level": level_shape(LEVEL, SMALL_TEXT, SMALL_CODES),
        "short rows": toy_shape(),
    }
    for name, (row_length, rows, steps) in TRAINED.items():
        shards = _shards(folder / name, shapes[name], 1000)
        config = dataclasses.replace(pipeline(shards, 1, 0), row_length=row_length)
        experiment = small_experiment(config, rows, steps, steps // 2)
        last = train_on(experiment, shards)
        _print_training(name, last)
    _print_training("short rows, too late", train_on(experiment, shards, delay=2 * last["step_ms"] / 1000))


def pipeline(shards: ShardSet, threads: int, workers: int) -> PipelineConfig:
    """The pipeline of stage pretrain_512 but for threads and processes."""
    return PipelineConfig(
        shards=str(shards.directory),
        row_length=LEVELS[LEVEL].row_length,
        packing="compute_budget",
        drop_too_long=True,
        condition_dropout=0.1,
        mixture=MixtureConfig(AT_512),
        sequence=SequenceConfig(scale_reweight=LEVELS[LEVEL].scale_reweight),
        reader_threads=threads,
        prefetch_batches=max(2, threads),
        workers=workers,
    )


def drain(batches: Iterator[dict[str, np.ndarray]], seconds: float) -> tuple[int, int, float]:
    """(rows, tokens, seconds) of the batches that come in that time."""
    rows = tokens = 0
    begin = time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < seconds:
        document = next(batches)["document"]
        rows, tokens = rows + len(document), tokens + int(np.count_nonzero(document))
    return rows, tokens, elapsed


class Clock:
    """Sums the seconds of blocks by name."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._name, self._begin = "", 0.0

    def __call__(self, name: str) -> "Clock":
        self._name = name
        return self

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.spent[self._name] = self.spent.get(self._name, 0.0) + time.perf_counter() - self._begin


def memory_mib(process: int) -> float:
    """Proportional set size: pages shared with others count in part, so that processes add up."""
    text = pathlib.Path(f"/proc/{process}/smaps_rollup").read_text()
    return int(re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)[1]) / 1024


def _workers() -> list[int]:
    """Processes that this one started and that hold more than a helper does."""
    lists = [path.read_text() for path in pathlib.Path(f"/proc/{os.getpid()}/task").glob("*/children")]
    children = [int(child) for text in lists for child in text.split()]
    return [child for child in children if memory_mib(child) > 50]


def _shards(directory: pathlib.Path, shape: Shape, documents: int) -> ShardSet:
    return (
        open_shards(directory)
        if directory.exists()
        else write_shards(directory, mixed_documents(documents, shape, 0), shape)
    )


def _print_training(name: str, last: dict[str, float]) -> None:
    names = ("tokens_per_s", "fill", "step_ms", "data_wait", "data_wait_s", "batches_ready")
    print(json.dumps({"trained on": name, **{key: round(last[key], 3) for key in names}}), flush=True)


if __name__ == "__main__":
    run_entry_point(main)

"""Packing strategies on a mixture like Table 2's: simulated at the 512 level for 64 ranks, and trained on at toy size.

What it asks: how many tokens a second each strategy leaves when every rank waits for the one with the most work. The
paper's Table 3 has 620 tokens/s a GPU padding each batch, 2110 with a fixed length, 2517 with a compute budget.

Simulated: documents have the positions and visible pairs of real ones (`table2_documents`); tasks by the counts of
stage pretrain_512. A row costs what `row_cost` says of the 7B decoder, padding included. "pad each batch" pads its rows
to the longest document of the batch, as programs with dynamic shapes can; all others have rows of 20,480 positions.

Trained: the small decoder on this machine's CPU, 8 rows a step, on documents a 1/18 as long. All strategies read the
same stretch of the same stream, a window of 3 packed batches, to within a batch; "pad each batch" has a program for
every multiple of 128 positions and takes the shortest that holds its batch, of 8 rows, or of 64 that eight devices
would share. Steps of all take turns, so that what else the machine does hits all alike; neither compilation nor reading
counts. Devices do not wait for one another here: the gain is padding's alone.

Command: `python -m experiments.bench.packing`
Cost: 3 minutes on two cores.
Result, simulated: tokens a second relative to padding each batch, padding share, imbalance (dearest rank to the mean):

    rows a rank     pad each batch        fixed length          compute budget
    8               1.00  0.873  1.026    7.46  0.000  1.034    7.70  0.002  1.000
    1               1.00  0.753  1.097    3.85  0.000  1.133    4.33  0.000  1.008

Trained (two cores of an AMD EPYC with AVX-512, jax 0.10.2): tokens a second without padding, and as multiples:

    pad each batch, 64 rows     718   1.00   padding 0.821   256 documents
    pad each batch, 8 rows    1,231   1.71   padding 0.669   256
    fixed length              2,576   3.59   padding 0.001   271
    compute budget            2,940   4.09   padding 0.001   272

The two packed lines run the same program on rows of the same length, so what lies between them is noise. On a CPU
attention computes hidden pairs too, which costs the long rows of packing more than an accelerator would.
"""

import argparse
import json
import pathlib
import tempfile
import time
from collections.abc import Sequence

import jax
import numpy as np

from experiments.bench.shard_training import ShardRows, small_experiment
from experiments.bench.table2_documents import (
    TASKS,
    level_shape,
    make_document,
    mixed_documents,
    toy_shape,
    write_shards,
)
from experiments.nextflow.decoder import AT_512, CODE_DIM, CODES, LEVELS, MAX_SCALES, QWEN_ROWS
from nextflow_jax import compile_cache, sharding
from nextflow_jax.data.index import DocumentIndex, Keys
from nextflow_jax.data.mixture import MixtureConfig, make_stream
from nextflow_jax.data.packing import STRATEGIES
from nextflow_jax.data.pipeline import PipelineConfig
from nextflow_jax.data.plan import DocumentTable, Plan, PlanConfig, RowPlan
from nextflow_jax.data.segments import PositionCounts, condition_pairs, count_positions
from nextflow_jax.data.shards import ShardSet
from nextflow_jax.data.tally import imbalance
from nextflow_jax.errors import run_entry_point
from nextflow_jax.models.presets import decoder_preset
from nextflow_jax.sequence import SequenceConfig
from nextflow_jax.training.experiment import DecoderExperiment
from nextflow_jax.training.row_cost import row_cost
from nextflow_jax.training.state import init_state, make_layout
from nextflow_jax.training.step import compile_step
from nextflow_jax.vocabulary import Vocabulary

LEVEL = 512
RANKS = 64
WINDOW = 16
"""Batches that are planned together."""
DROPOUT = 0.1
DISTINCT = 3000
"""Documents of every task that are drawn from again and again."""
TRAINED_WINDOW, TRAINED_ROWS, TRAINED_LENGTH = 3, 8, 1152
WIDTH_STEP = 128
"""Programs of "pad each batch" are multiples of this long."""
PADDED_ROWS = (8, 64)
"""Global batches of "pad each batch": of one device, and of eight that do one after another what they would at once."""


def main(arguments: Sequence[str]) -> None:
    """Prints one JSON object a strategy."""
    parser = argparse.ArgumentParser("python -m experiments.bench.packing", description=__doc__)
    parser.add_argument("--windows", type=int, default=4, help="of 16 batches each (%(default)s)")
    parser.add_argument("--parts", default="simulate,train", help="which to measure (%(default)s)")
    flags = parser.parse_args(arguments)
    if "simulate" in flags.parts:
        for rows in (LEVELS[LEVEL].rows, RANKS):
            simulate(rows, flags.windows)
    if "train" in flags.parts:
        measure_training()


def simulate(rows: int, windows: int) -> None:
    """Prints a line for every strategy, with global batches of so many rows."""
    cost = row_cost(decoder_preset("qwen2_5_vl_7b", Vocabulary(QWEN_ROWS, CODES), CODE_DIM, MAX_SCALES))
    table, index = make_documents(np.random.default_rng(0))
    stream = make_stream(MixtureConfig(AT_512), index, np.ones(len(index), bool), 0)
    base = 0.0
    for name, strategy in STRATEGIES.items():
        config = PlanConfig(0, rows, WINDOW, LEVELS[LEVEL].row_length, DROPOUT, ranks=RANKS, cost=cost)
        begin = time.perf_counter()
        plan = Plan(config, stream, table, strategy)
        batches = [plan.batch(n) for n in range(WINDOW * windows)]
        seconds = time.perf_counter() - begin
        found = measure(batches, table, config, to_longest=name == "pad_each_batch")
        base = base or found["tokens_per_flop"]
        line = {
            "simulated": name,
            "rows_a_rank": rows // RANKS,
            "tokens_per_s_relative": round(found["tokens_per_flop"] / base, 2),
            "padding": round(found["padding"], 4),
            "imbalance": round(found["imbalance"], 4),
            "documents_a_row": round(found["documents"] / (len(batches) * rows), 2),
            "documents_planned_per_s": round(found["documents"] / seconds),
        }
        print(json.dumps(line), flush=True)


def measure_training() -> None:
    """Prints what the small decoder trains on in a second, padding left out, with each strategy."""
    compile_cache.enable()
    shape = toy_shape()
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(pathlib.Path(folder) / "shards", mixed_documents(2000, shape, 0), shape)
        packed = {name: _batches(name, TRAINED_WINDOW, shards) for name in ("fixed_length", "compute_budget")}
        unpacked = round(_documents(packed["compute_budget"]) / PADDED_ROWS[-1]) * PADDED_ROWS[-1] // TRAINED_ROWS
        plain = _batches("pad_each_batch", unpacked, shards)
        batches = {f"pad_each_batch, {rows} rows": _cut(plain, rows // TRAINED_ROWS) for rows in PADDED_ROWS} | packed
        train = _Trainer(shards, sorted({_width(batch) for own in batches.values() for batch in own}))
    seconds = dict.fromkeys(batches, 0.0)
    # A strategy's k-th batch comes when the same share of the others is through.
    turns = sorted((i / len(own), name, i) for name, own in batches.items() for i in range(len(own)))
    train(batches["compute_budget"][0])
    for _, name, i in turns:
        seconds[name] += train(batches[name][i])
    base = 0.0
    for name, own in batches.items():
        positions = sum(batch["document"].size for batch in own)
        tokens = sum(int(np.count_nonzero(batch["document"])) for batch in own)
        base = base or tokens / seconds[name]
        line = {
            "trained": name,
            "tokens_per_s": round(tokens / seconds[name]),
            "tokens_per_s_relative": round(tokens / seconds[name] / base, 2),
            "padding": round(1 - tokens / positions, 4),
            "documents": _documents(own),
            "steps": len(own),
            "step_ms": round(1000 * seconds[name] / len(own)),
        }
        print(json.dumps(line), flush=True)


def measure(
    batches: list[list[RowPlan]], table: DocumentTable, config: PlanConfig, to_longest: bool
) -> dict[str, float]:
    """Real tokens a FLOP of the rank with the most, padding, imbalance and documents of the batches.

    Args:
      batches: their rows.
      table: of the documents.
      config: of the plan.
      to_longest: rows are as long as the longest of their batch, not config.row_length.
    """
    saved = table.condition
    tokens = positions = worst = documents = 0.0
    imbalances = []
    for rows in batches:
        lengths = [table.length[row.records] - row.dropped * saved[row.records] for row in rows]
        pairs = [table.pairs[row.records] - row.dropped * table.condition_pairs[row.records] for row in rows]
        used = np.asarray([length.sum() for length in lengths])
        width = int(used.max()) if to_longest else config.row_length
        seen = np.asarray([one.sum() for one in pairs]) + (width - used)
        costs = config.cost.flops(np.full(len(rows), width), seen)
        worst += costs.reshape(config.groups, -1).sum(axis=1).max()
        imbalances.extend(imbalance(costs, config.batch_size, config.groups))
        tokens, positions = tokens + used.sum(), positions + width * len(rows)
        documents += sum(map(len, lengths))
    return {
        "tokens_per_flop": tokens / worst,
        "padding": 1 - tokens / positions,
        "imbalance": float(np.mean(imbalances)),
        "documents": documents,
    }


def make_documents(generator: np.random.Generator) -> tuple[DocumentTable, DocumentIndex]:
    """What a plan knows of `DISTINCT` documents of each task."""
    shape = level_shape(LEVEL)
    counts: list[PositionCounts] = []
    for task in TASKS:
        documents = (make_document("", task, shape, generator) for _ in range(DISTINCT))
        counts += [count_positions(document, shape.family) for document in documents]
    columns = {
        name: np.asarray([getattr(one, name) for one in counts])
        for name in ("plain", "condition", "context", "inverted_context", "pairs", "context_pairs")
    }
    task = np.repeat(np.arange(len(TASKS), dtype=np.int32), DISTINCT)
    zeros = np.zeros(len(task), np.int32)
    index = DocumentIndex(
        keys=Keys.of(map(str, range(len(task)))), task=task, tasks=TASKS, source=zeros, sources=("",),
        inverted_context_pairs=zeros, **columns,
    )  # fmt: skip
    saved = condition_pairs(index.plain, index.condition)
    return DocumentTable(index.plain, index.condition, task, TASKS, zeros, index.pairs, saved, zeros), index


def _experiment(shards: ShardSet, packing: str, row_length: int) -> DecoderExperiment:
    config = PipelineConfig(
        shards=str(shards.directory),
        row_length=row_length,
        packing=packing,
        window_batches=TRAINED_WINDOW,
        condition_dropout=DROPOUT,
        drop_too_long=True,
        mixture=MixtureConfig(AT_512),
        sequence=SequenceConfig(scale_reweight=LEVELS[LEVEL].scale_reweight),
    )
    return small_experiment(config, TRAINED_ROWS, steps=1000, log_every=1000)


def _batches(packing: str, count: int, shards: ShardSet) -> list[dict[str, np.ndarray]]:
    batches = ShardRows(_experiment(shards, packing, TRAINED_LENGTH), shards).batches(0, 0, 1)
    return [next(batches) for _ in range(count)]


def _cut(batches: list[dict[str, np.ndarray]], together: int) -> list[dict[str, np.ndarray]]:
    """Batches without positions that every row of so many of them can do without."""
    longest = [int(np.count_nonzero(batch["document"], axis=1).max()) for batch in batches]
    groups = (longest[i // together * together :][:together] for i in range(len(batches)))
    widths = [-(-max(group) // WIDTH_STEP) * WIDTH_STEP for group in groups]
    return [{name: array[:, :width] for name, array in batch.items()} for batch, width in zip(batches, widths)]


def _documents(batches: list[dict[str, np.ndarray]]) -> int:
    return sum(int(batch["document"].max(axis=1).sum()) for batch in batches)


def _width(batch: dict[str, np.ndarray]) -> int:
    return batch["tokens"].shape[1]


class _Trainer:
    """Trains one state on batches of any of some widths, each with a program of its own."""

    def __init__(self, shards: ShardSet, widths: Sequence[int]) -> None:
        experiments = {width: _experiment(shards, "fixed_length", width) for width in widths}
        tasks = {width: ShardRows(experiment, shards) for width, experiment in experiments.items()}
        experiment, task = experiments[widths[0]], tasks[widths[0]]
        mesh, rules = sharding.make_mesh(experiment.mesh, jax.devices()[:1]), sharding.make_rules()
        layout = make_layout(task, experiment.optimizer, experiment.train.steps, mesh, rules)
        self._rows = sharding.batch_sharding(mesh, rules)
        self._state = init_state(task, layout, experiment.seed)
        self._programs = {
            width: compile_step(task, layout, experiment.seed, task.batch_specs()[0]).call
            for width, task in tasks.items()
        }

    def __call__(self, batch: dict[str, np.ndarray]) -> float:
        """A step on this batch; the seconds that it takes."""
        placed = jax.block_until_ready(jax.device_put(batch, self._rows))
        begin = time.perf_counter()
        self._state, metrics = self._programs[_width(batch)](self._state, {}, placed)
        jax.block_until_ready(metrics)
        return time.perf_counter() - begin


if __name__ == "__main__":
    run_entry_point(main)

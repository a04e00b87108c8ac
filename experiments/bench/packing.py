"""Packing strategies on a mixture like Table 2's at the 512 level, simulated from the FLOPs model for 64 ranks.

What it asks: how many tokens a second each strategy leaves when every rank waits for the one with the most work. The
paper's Table 3 has 620 tokens/s a GPU padding each batch, 2110 with a fixed length, 2517 with a compute budget.

Documents have the positions and visible pairs of real ones: 41 picture sizes with their schedules, captions of about 60
tokens, texts with a lognormal spread around 500, edits with two pictures, interleaved documents and frames with two to
five; tasks by the counts of stage pretrain_512. A row costs what `row_cost` says of the 7B decoder, padding included.
"pad each batch" pads its rows to the longest document of the batch, as programs with dynamic shapes can; all others
have rows of 20,480 positions.

Command: `python -m experiments.bench.packing`
Cost: about 2 minutes on one core.
Result, simulated: tokens a second relative to padding each batch, padding share, imbalance (dearest rank to the mean):

    rows a rank     pad each batch        fixed length          compute budget
    8               1.00  0.875  1.026    7.54  0.000  1.035    7.78  0.002  1.000
    1               1.00  0.760  1.099    3.99  0.000  1.131    4.48  0.001  1.008
"""

import argparse
import io
import json
import pathlib
import tempfile
import time
from collections.abc import Sequence

import jax
import numpy as np

from experiments.nextflow.decoder import (
    AT_512,
    BASE_LADDER,
    CODE_DIM,
    CODES,
    LEVEL_SCALES,
    LEVELS,
    MAX_SCALES,
    QWEN_ROWS,
)
from nextflow_jax.config import load_experiment
from nextflow_jax.data.index import DocumentIndex, Keys
from nextflow_jax.data.mixture import MixtureConfig, make_stream
from nextflow_jax.data.packing import STRATEGIES
from nextflow_jax.data.plan import DocumentTable, Plan, PlanConfig, RowPlan, imbalance
from nextflow_jax.data.records import EncodedDocument, EncodedImage, EncodedSegment, EncodedText
from nextflow_jax.data.segments import PositionCounts, condition_pairs, count_positions
from nextflow_jax.data.shards import open_shards
from nextflow_jax.errors import run_entry_point
from nextflow_jax.models.presets import decoder_preset
from nextflow_jax.scales import ScheduleFamily, level_family
from nextflow_jax.training.experiment import prepare_experiment
from nextflow_jax.training.loop import train
from nextflow_jax.training.metrics import read_metrics
from nextflow_jax.training.row_cost import row_cost
from nextflow_jax.training.tasks import make_task
from nextflow_jax.vocabulary import Vocabulary

LEVEL = 512
RANKS = 64
WINDOW = 16
"""Batches that are planned together."""
DROPOUT = 0.1
DISTINCT = 3000
"""Documents of every task that are drawn from again and again."""


def main(arguments: Sequence[str]) -> None:
    """Prints one JSON object a strategy."""
    parser = argparse.ArgumentParser("python -m experiments.bench.packing", description=__doc__)
    parser.add_argument("--windows", type=int, default=4, help="of 16 batches each (%(default)s)")
    parser.add_argument("--shards", default="", help="also train the quickstart's decoder on these, with each strategy")
    parser.add_argument("--steps", type=int, default=60, help="of that training (%(default)s)")
    flags = parser.parse_args(arguments)
    for rows in (LEVELS[LEVEL].rows, RANKS):
        simulate(rows, flags.windows)
    if flags.shards:
        measure_training(flags.shards, flags.steps)


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


def measure_training(shards: str, steps: int) -> None:
    """Prints what the quickstart's decoder trains on in a second, padding left out, with each strategy."""
    index = open_shards(shards).index("train")
    longest = int((index.plain + index.context).max())  # the quickstart feeds context blocks
    base = 0.0
    for name in STRATEGIES:
        overrides = [f"pipeline.shards={shards}", f"pipeline.packing={name}", f"train.steps={steps}"]
        overrides += [f"train.log_every={steps // 2}", "pipeline.mixture.weights=()"]
        if name == "pad_each_batch":
            overrides.append(f"pipeline.row_length={longest}")
        config = load_experiment("experiments/openmoji/quickstart.py:decoder", overrides)
        experiment = prepare_experiment(config, jax.device_count())
        with tempfile.TemporaryDirectory() as folder:
            workdir = pathlib.Path(folder)
            train(experiment, make_task(experiment), workdir, jax.devices(), io.StringIO())
            last = read_metrics(workdir)[-1]
        tokens = last["tokens_per_s"] * last["fill"]
        base = base or tokens
        line = {
            "trained": name,
            "row_length": experiment.pipeline.row_length,
            "tokens_per_s": round(tokens),
            "tokens_per_s_relative": round(tokens / base, 2),
            "padding": round(1 - last["fill"], 4),
            "step_ms": round(last["step_ms"]),
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
        imbalances.append(imbalance(costs, config.batch_size, config.groups))
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
    sizes = level_family(LEVEL).sizes
    family = ScheduleFamily(BASE_LADDER[: LEVEL_SCALES[LEVEL]], level_family(LEVEL).stride, sizes)
    tasks = tuple(task for task, _ in AT_512)
    counts: list[PositionCounts] = []
    for task in tasks:
        counts += [count_positions(_document(task, family, generator), family) for _ in range(DISTINCT)]
    columns = {
        name: np.asarray([getattr(one, name) for one in counts])
        for name in ("plain", "condition", "context", "inverted_context", "pairs", "context_pairs")
    }
    task = np.repeat(np.arange(len(tasks), dtype=np.int32), DISTINCT)
    zeros = np.zeros(len(task), np.int32)
    index = DocumentIndex(
        keys=Keys.of(map(str, range(len(task)))), task=task, tasks=tasks, source=zeros, sources=("",),
        inverted_context_pairs=zeros, **columns,
    )  # fmt: skip
    saved = condition_pairs(index.plain, index.condition)
    return DocumentTable(index.plain, index.condition, task, tasks, zeros, index.pairs, saved, zeros), index


def _document(task: str, family: ScheduleFamily, generator: np.random.Generator) -> EncodedDocument:
    def text(median: float, role: str, spread: float = 0.5) -> EncodedSegment:
        count = int(np.clip(generator.lognormal(np.log(median), spread), 4, 4000))
        return EncodedText(np.zeros(count, np.int32), role)

    def picture(role: str) -> EncodedSegment:
        # Half of the pictures are square, the others of any of the sizes.
        size = (LEVEL, LEVEL) if generator.random() < 0.5 else family.sizes[generator.integers(len(family.sizes))]
        codes = np.zeros(family.schedule(size).num_tokens, np.int32)
        return EncodedImage(size, codes, codes, role)

    if task == "text":
        segments = [text(500, "response", 1.0)]
    elif task == "text_to_image":
        segments = [text(60, "prompt"), picture("response")]
    elif task == "edit":
        segments = [picture("prompt"), text(30, "prompt"), picture("response")]
    else:
        pictures = int(generator.integers(2, 6))
        segments = [one for _ in range(pictures) for one in (text(60, "prompt"), picture("response"))]
    return EncodedDocument("", task, tuple(segments))


if __name__ == "__main__":
    run_entry_point(main)

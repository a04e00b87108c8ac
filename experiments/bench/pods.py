"""What the stages of the paper's Table 2 take on pods that nobody here has: writes experiments/nextflow/pods.md.

    python -m experiments.bench.pods
    python -m experiments.bench.pods --price v5p=PRICE --price v6e=PRICE --out priced.md     # money for a chip-hour
    python -m experiments.bench.pods --compiled FILE.json ...     # bytes beside those that nextflow_jax.compile counted

What it asks: seconds of a step, goodput, days and chip-hours of every stage of experiments/nextflow/decoder.py on
v5p-512 to v5p-8960 and on one to sixteen slices of v6e-256, by `nextflow_jax.planning`: a roofline with six parameters
from published runs of MaxText, tried on the others. Nothing is measured; the page says what is assumed.

Cost: a few seconds on one core.

Result: the page. On held-out published runs the predictions are off by 8.4% on average and 16.2% at most.
Bytes a chip sends over ICI in a step, of the model and of what libtpu 0.0.42.1 compiles (jax 0.10.2, --effort -1):

    pretrain_512, v6e:16x16, fsdp 256    61.6 GB    61.8 GB   1.00
    pretrain_256, v5p:4x4x4, fsdp 64     60.9 GB    89.0 GB   1.46   its weights are gathered by all-reduces
    pretrain_1024, two v5p:4x4x8, 64x2  121.5 GB   139.7 GB   1.15   likewise; over DCN 0.24 and 0.15 GB

(gradients are reduced in bfloat16 by all-reduces, which send over ICI as much as reduce-scatters in float32 would, over
DCN less).
"""

import argparse
import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.nextflow.decoder import CODE_DIM, CODES, LEVELS, MAX_SCALES, QWEN_ROWS, STAGES, Stage
from nextflow_jax.aot.topology import parse_topology
from nextflow_jax.errors import UserError, run_entry_point
from nextflow_jax.models.presets import decoder_preset
from nextflow_jax.planning.goodput import Reliability, Saving, best_saving
from nextflow_jax.planning.published import PublishedRun, published_runs
from nextflow_jax.planning.step_time import (
    ATTENTION_EFFICIENCY,
    Efficiency,
    StepTime,
    fit_efficiency,
    relative_error,
    step_time,
)
from nextflow_jax.planning.work import (
    ATTENTION_BLOCK,
    REMAT,
    Batch,
    Placement,
    TransformerShape,
    chip_work,
    model_flops,
)
from nextflow_jax.scales import level_family
from nextflow_jax.sequence import ImageSegment, Segment, TextSegment, sequence_length, visible_pairs
from nextflow_jax.vocabulary import Vocabulary

PAGE = pathlib.Path(__file__).parents[1] / "nextflow" / "pods.md"

PODS = {
    "v5p-512": ("v5p", (4, 8, 8), 1),
    "v5p-1024": ("v5p", (8, 8, 8), 1),
    "v5p-2048": ("v5p", (8, 8, 16), 1),
    "v5p-4096": ("v5p", (8, 16, 16), 1),
    "v5p-8192": ("v5p", (16, 16, 16), 1),
    "v5p-8960": ("v5p", (8, 20, 28), 1),
    **{f"{slices} x v6e-256": ("v6e", (16, 16), slices) for slices in (1, 2, 4, 8, 16)},
}
"""Name -> generation, chips of a slice along each dimension, slices. v5p-N is N TensorCores: N/2 chips."""

CAPTION, TEXT, TURN = 60, 500, 30
"""Tokens of a caption or instruction, of a document of text alone, and of the text before each of several pictures."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A stage on a pod."""

    place: Placement
    batch: Batch
    step: StepTime
    mfu: float
    steps: int
    saving: Saving

    @property
    def seconds(self) -> float:
        """From the first step to the last, failures included."""
        return self.steps * self.step.total / self.saving.goodput

    @property
    def chip_hours(self) -> float:
        """What is rented for that."""
        return self.seconds / 3600 * self.place.chips


def main(arguments: Sequence[str]) -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser("python -m experiments.bench.pods", description=__doc__.split("\n")[0])
    parser.add_argument("--out", default=str(PAGE), help="file to write (%(default)s)")
    parser.add_argument(
        "--compiled",
        nargs="+",
        default=[],
        metavar="FILE",
        help="training steps that nextflow_jax.compile described: prints their bytes beside the model's",
    )
    parser.add_argument("--price", action="append", default=[], metavar="GENERATION=PRICE", help="of a chip-hour")
    for field in dataclasses.fields(Reliability):
        parser.add_argument(f"--{field.name}", type=float, default=field.default, help="(%(default)g)")
    options = parser.parse_args(arguments)
    if options.compiled:
        for name in options.compiled:
            print(json.dumps({"file": name, **compare_bytes(json.loads(pathlib.Path(name).read_text()))}), flush=True)
        return
    reliability = Reliability(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Reliability)})
    for fault in reliability.faults():
        raise UserError(f"--{fault.field} {fault.value}: {fault.rule}; {fault.fix}")
    pathlib.Path(options.out).write_text(page(reliability, read_prices(options.price)), encoding="utf-8")


def compare_bytes(compiled: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes a chip sends in a step: the model's, and those of a compiled program of the recipe's decoder.

    Args:
      compiled: what `nextflow_jax.compile` printed of a training step.

    Returns:
      topology, slices, mesh, and of ICI and DCN each [the model's, the compiled program's, compiled / model].
    """
    generation, shape = parse_topology(compiled["topology"])
    mesh = dict(compiled["mesh"])
    place = Placement(generation, shape, mesh.pop("slice"), **mesh)
    rows = compiled["settings"]["train.batch_size"]
    length = compiled["tokens_per_step"] // rows
    work = chip_work(decoder_shape(), Batch(rows, length, 0.0), place, REMAT[compiled["settings"]["model.remat"]])
    counted = compiled["roofline"]["work"]
    both = {"ici": (work.ici_bytes, counted["ici_bytes"]), "dcn": (work.dcn_bytes, counted["dcn_bytes"])}
    found = {
        name: [round(ours), round(theirs), ours and round(theirs / ours, 2)] for name, (ours, theirs) in both.items()
    }
    return {"topology": compiled["topology"], "slices": place.slices, "mesh": mesh, **found}


def read_prices(texts: Sequence[str]) -> dict[str, float]:
    """{"v5p": 1.5} of ["v5p=1.5"].

    Raises:
      UserError: not of that form.
    """
    prices = {}
    for text in texts:
        generation, _, price = text.partition("=")
        try:
            prices[generation] = float(price)
        except ValueError:
            raise UserError(f"--price {text!r}: expects GENERATION=PRICE, e.g. v5p=1.5") from None
    return prices


def decoder_shape() -> TransformerShape:
    """The recipe's decoder."""
    model = decoder_preset("qwen2_5_vl_7b", Vocabulary(QWEN_ROWS, CODES), CODE_DIM, MAX_SCALES)
    return TransformerShape(
        *(model.layers, model.width, model.heads, model.kv_heads, model.head_size, model.mlp_width),
        model.vocabulary.size,
    )


def pairs_per_position(stage: Stage) -> float:
    """Keys that a position sees on average, over documents as the stage's mixture has them, one square size."""
    schedule = level_family(stage.level).schedule((stage.level, stage.level))
    codes = np.zeros(schedule.num_tokens, np.int32)

    def text(tokens: int) -> TextSegment:
        return TextSegment(np.zeros(tokens, np.int32))

    image = ImageSegment(schedule, codes, codes)
    turns: list[Segment] = [segment for _ in range(LEVELS[stage.level].max_images) for segment in (text(TURN), image)]
    documents: Mapping[str, list[Segment]] = {
        "text": [text(TEXT)],
        "text_to_image": [text(CAPTION), image],
        "image_to_text": [image, text(CAPTION)],
        "edit": [image, text(CAPTION), image],
        "interleaved": turns,
        "frames": turns,
    }
    positions = sum(weight * sequence_length(documents[task]) for task, weight in stage.mixture)
    return sum(weight * visible_pairs(documents[task]) for task, weight in stage.mixture) / positions


def place_stage(pod: str, stage: Stage, width: int) -> tuple[Placement, Batch]:
    """Mesh and batch of a stage on a pod: every chip busy, and a batch as near the recipe's as that allows.

    A row is shared (context) where there are more chips than rows. Parameters are split over as many chips of a slice
    as divide the width; what is left replicates them.
    """
    generation, topology, slices = PODS[pod]
    level, in_slice = LEVELS[stage.level], math.prod(topology)
    context = level.context
    while in_slice * slices // context > level.rows:
        context *= 2
    groups = in_slice * slices // context
    rows = max(1, round(level.rows / groups)) * groups
    left = in_slice // context
    fsdp = max(size for size in range(1, left + 1) if left % size == 0 and width % (size * context) == 0)
    place = Placement(generation, topology, slices, data=left // fsdp, fsdp=fsdp, context=context)
    return place, Batch(rows, level.row_length, level.row_length * pairs_per_position(stage))


def predict(pod: str, name: str, efficiency: Efficiency, reliability: Reliability) -> Prediction:
    """Stage `name` on a pod."""
    shape, stage = decoder_shape(), STAGES[name]
    place, batch = place_stage(pod, stage, shape.width)
    frozen = name == "align_256"
    step = step_time(chip_work(shape, batch, place, REMAT["full"], frozen), place, efficiency)
    mfu = model_flops(shape, batch, frozen) / (place.chips * place.chip.peak_flops * step.total)
    steps = math.ceil(stage.tokens / batch.positions)
    return Prediction(place, batch, step, mfu, steps, best_saving(shape.parameters, place.chips, reliability))


def page(reliability: Reliability, prices: Mapping[str, float]) -> str:
    """The whole page, Markdown."""
    runs = published_runs()
    efficiency = fit_efficiency([run for run in runs if run.fitted])
    predictions = {name: {pod: predict(pod, name, efficiency, reliability) for pod in PODS} for name in STAGES}
    parts = [INTRODUCTION.format(**_held_out(runs, efficiency)), *_whole_recipe(predictions, prices)]
    for name in STAGES:
        parts += _stage(name, predictions[name])
    parts += _assumptions(efficiency, reliability)
    parts += _check(runs, efficiency)
    return "\n".join(parts) + "\n"


INTRODUCTION = """\
# What the recipe would take on pods

A prediction, not a measurement: no TPU has run this code. Written by `python -m experiments.bench.pods`, whose flags
change failures, storage and prices, with the model of `nextflow_jax/planning`; what it assumes is below.

How far to trust it: six free parameters are fitted to published runs of MaxText; on those that were held out it is off
by {mean:.1f}% on average and {worst:.1f}% at most, and by {near:+.1f}% on the one nearest to ours (8B on v6e, where
the only fitted run is of 70B). It supposes that our step is as well tuned as theirs, which nobody has measured. No run
with as little work a chip as ours has on 2,000 chips and more was published: there it says what the links allow.

v5p-N has N/2 chips; the largest job that Google schedules on v5p is of 6,144.
"""


def _held_out(runs: Sequence[PublishedRun], efficiency: Efficiency) -> dict[str, float]:
    errors = [100 * relative_error(run, efficiency) for run in runs if not run.fitted]
    (near,) = (100 * relative_error(run, efficiency) for run in runs if run.name == "Llama 3.1 8B")
    sizes = [abs(error) for error in errors]
    return {"mean": sum(sizes) / len(sizes), "worst": max(sizes), "near": near}


def _whole_recipe(predictions: Mapping[str, Mapping[str, Prediction]], prices: Mapping[str, float]) -> Iterator[str]:
    yield "## All stages\n"
    money = " price |" if prices else ""
    yield f"| pod | chips | days | chip-hours |{money}\n| --- | ---: | ---: | ---: |{' ---: |' if prices else ''}"
    for pod, (generation, _, _) in PODS.items():
        stages = [of_stage[pod] for of_stage in predictions.values()]
        days, hours = sum(one.seconds for one in stages) / 86_400, sum(one.chip_hours for one in stages)
        price = prices.get(generation)
        money = "" if not prices else f" {hours * price:,.0f} |" if price else " |"
        yield f"| {pod} | {stages[0].place.chips:,} | {days:.1f} | {hours:,.0f} |{money}"
    yield ""


def _stage(name: str, predictions: Mapping[str, Prediction]) -> Iterator[str]:
    stage = STAGES[name]
    tokens = f"{stage.tokens / 1e12:g}T" if stage.tokens >= 1e10 else f"{stage.tokens / 1e9:.1f}G"
    seen = pairs_per_position(stage)
    yield f"## {name}\n"
    yield (
        f"{tokens} positions, rows of {LEVELS[stage.level].row_length:,}, of which the recipe has "
        f"{LEVELS[stage.level].rows} a step; a position sees {seen:,.0f} keys on average.\n"
    )
    yield (
        "| pod | rows | data x fsdp x context | s a step | compute / ICI / DCN / slices | MFU | save every | goodput | "
        "days | chip-hours |\n| --- | ---: | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for pod, one in predictions.items():
        place, step = one.place, one.step
        shares = [step.compute + step.update, step.ici, step.dcn, step.doubling]
        spent = " / ".join(f"{share / step.total:.0%}" for share in shares)
        mesh = f"{place.data} x {place.fsdp} x {place.context}"
        yield (
            f"| {pod} | {one.batch.rows} | {mesh} | {step.total:.2f} | {spent} | {one.mfu:.1%} | "
            f"{one.saving.interval / 60:.1f} min ({one.saving.interval / step.total:.0f} steps) | "
            f"{one.saving.goodput:.2%} | {one.seconds / 86_400:.2f} | {one.chip_hours:,.0f} |"
        )
    yield ""


def _assumptions(efficiency: Efficiency, reliability: Reliability) -> Iterator[str]:
    reached = ", ".join(f"{name} {share:.3f}" for name, share in efficiency.compute.items())
    yield "## Assumptions\n"
    yield f"""\
- Chips: peak FLOP/s, memory, ICI and DCN bandwidths of `nextflow_jax/aot/chips.py`, with its sources.
- Executed FLOPs: products of the layers three times for forward and backward pass and once more by the remat policy
  "full" (not a layer's last product), the head three times, attention kernels by the pairs a position sees and a block
  of {ATTENTION_BLOCK} more, their backward pass as 2.5 forward passes. `align_256` computes no gradients of frozen
  weights. MFU counts model FLOPs: nothing twice, no blocks.
- Fitted to published runs: share of the peak that products reach, {reached};
  share of the time on ICI that is not hidden, {efficiency.ici:.3f}, and on DCN, {efficiency.dcn:.3f}; and
  {efficiency.doubling:.3f} of the ideal compute time for every doubling of the slices. Kernels are assumed to reach
  {ATTENTION_EFFICIENCY:g} of what products do.
- ICI, by rings over all links of a chip: weights gathered twice in bfloat16, gradients scattered once in float32 (and
  reduced over replicas), keys and values of shared rows. DCN: gradients of a chip's share reduced over the slices in
  float32. What libtpu compiles sends more (`--compiled`); so did what MaxText measured, and the fitted shares have it.
- The batch is the recipe's where the chips divide it, else the nearest that they divide; rows are full; a row is shared
  by `context` chips where there are more chips than rows.
- Documents: captions of {CAPTION} tokens, texts of {TEXT}, {TURN} tokens before each of several pictures, one square
  size, the most pictures a document may have, weights of the stage's mixture.
- Failures: {reliability.failures_per_chip_hour:.3g} a chip-hour (Llama 3 405B on H100, arXiv 2407.21783, section
  3.3.4; we know no such figure for TPUs), {reliability.restart_seconds:g} s from a failure to working again (assumed).
  Queues, preemption and maintenance are left out.
- Checkpoints: 12 bytes a parameter. The steps wait {reliability.begin_seconds:g} s (assumed) and for the copy to the
  hosts at {reliability.host_copy_bandwidth:.3g} B/s a chip; then it is written behind them, at
  {reliability.storage_bandwidth:.3g} B/s a host and {reliability.finish_seconds:g} s to finish (assumed). Every chip
  and host has its share. The interval is Daly's, not shorter than writing takes; goodput is the inverse of his expected
  time. `train.checkpoint_every` counts steps.
- Loading data takes no time, nothing is evaluated, and memory is not looked at: `nextflow_jax.compile` does that.
"""


def _check(runs: Sequence[PublishedRun], efficiency: Efficiency) -> Iterator[str]:
    yield "## Check against published runs\n"
    yield (
        "Seconds of a step of dense decoders trained with MaxText; settings and sources are in\n"
        "`nextflow_jax/planning/published.py`. Fitted was every second row (model and slice) of the v5e and v5p\n"
        "tables, and Llama 3.1 70B on v6e; the other runs were predicted.\n"
    )
    yield "| run | chips | slices | published s | predicted s | error | |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | --- |"
    for run in runs:
        error = relative_error(run, efficiency)
        yield (
            f"| {run.name}, {run.place.generation} | {run.place.chips:,} | {run.place.slices} | {run.seconds:.2f} | "
            f"{run.seconds * (1 + error):.2f} | {error:+.1%} | {'fitted' if run.fitted else 'held out'} |"
        )
    for label, fitted in (("fitted", True), ("held out", False)):
        errors = [abs(relative_error(run, efficiency)) for run in runs if run.fitted == fitted]
        yield f"\nMean error of the {len(errors)} {label} runs: {np.mean(errors):.1%}, largest {max(errors):.1%}."


if __name__ == "__main__":
    run_entry_point(main)

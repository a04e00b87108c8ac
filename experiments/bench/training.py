"""MFU of the decoder's training step on packed rows, and the attention operation's TFLOP/s on the same rows.

    python -m experiments.bench.training --preset small --change attention=chunked --codes 2048 --text_size 1000 \
        --row_length 512 2048 --level 256 --rows 2 --peak_tflops 0                          (a CPU)
    python -m experiments.bench.training --preset large --change layers=32 --row_length 8192 16384
                                     (a GPU of 80 GB: the 2B shape; 2.1B parameters with Qwen's vocabulary)

The step is the real one (nextflow_jax/training/step.py): AdamW, clipping, remat as the preset says, fused head and
cross-entropy, donated state; its batch are random documents of text and pictures of `--level`, packed into rows. The
first call includes no compilation, which is timed apart; the figure is the median step.

Model FLOPs count products of the weights with every position and, for attention, the VISIBLE pairs of positions alone:
4 x pairs x heads x head size a layer forward, three times that with the backward pass, nothing for what is computed
again. A kernel that computes hidden pairs earns nothing by it; figures that count S x S pairs are higher ("dense MFU"
does). Attention is timed forward, and forward with backward for queries, keys and values, with one layer's shapes in
the compute dtype. `--peak_tflops` is dense bfloat16 of one device; 0 takes the maker's figure where it is known.

Prints a line of JSON a row length, then a table.

Result on two CPU cores (AMD EPYC with AVX-512, jax 0.10.2), 1.7M parameters, float32, two rows:

    row length   visible   attention   step s   tokens/s
           512     50.1%   auto         0.133      7,676
                           chunked      0.137      7,461
          2048     27.0%   auto         0.915      4,475
                           chunked      1.623      2,524

"auto" is the first command without its --change. No GPU or TPU was at hand for the second command.
"""

import argparse
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from experiments.bench.random_decoder import (
    add_model_flags,
    decoder_config,
    num_bytes,
    peak_memory,
    seconds_of,
    steady,
)
from nextflow_jax import sequence, sharding
from nextflow_jax.data.pipeline import PipelineConfig
from nextflow_jax.models.decoder import Decoder
from nextflow_jax.ops.attention import attend
from nextflow_jax.scales import level_schedule
from nextflow_jax.sequence import ImageSegment, SequenceConfig, TextSegment
from nextflow_jax.training.experiment import DecoderExperiment
from nextflow_jax.training.flops import TRAINING_FACTOR
from nextflow_jax.training.settings import TrainConfig
from nextflow_jax.training.state import init_state, make_layout, num_parameters
from nextflow_jax.training.step import compile_step, peak_flops
from nextflow_jax.training.tasks.decoder import DecoderTask
from nextflow_jax.vocabulary import Vocabulary

TEXT_TOKENS = (32, 256)
"""Between these many ids come before each picture."""


class RandomRows(DecoderTask):
    """The decoder task without shards: its batch is random."""

    def __init__(self, experiment: DecoderExperiment, batch: dict[str, np.ndarray]) -> None:
        self._experiment, self._model = experiment, Decoder(experiment.model)
        self._spec = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in batch.items()}

    def after_init(self, variables: Any) -> Any:
        """Unchanged: there is no tokenizer."""
        return variables


def packed_rows(vocabulary: Vocabulary, rows: int, length: int, level: int) -> dict[str, np.ndarray]:
    """Rows of random documents, a text and a picture each, as many as fit; the last one is text alone."""
    generator, schedule, config = np.random.default_rng(0), level_schedule(level), SequenceConfig()

    def text(tokens: int) -> TextSegment:
        return TextSegment(generator.integers(0, vocabulary.text_size, tokens).astype(np.int32))

    def row() -> sequence.Sequence:
        documents, room = [], length
        while room > 2:
            words = int(generator.integers(*TEXT_TOKENS))
            segments = [text(words)]
            if sequence.image_positions(schedule) + words + 2 <= room:
                codes = generator.integers(0, vocabulary.codebook_size, schedule.num_tokens).astype(np.int32)
                segments.append(ImageSegment(schedule, codes, codes))
            else:
                segments = [text(room - 2)]
            documents.append(sequence.flatten(segments, vocabulary, config))
            room -= len(documents[-1])
        return sequence.pack_row(documents, length, vocabulary)

    arrays = [row().arrays() for _ in range(rows)]
    return {name: np.stack([one[name] for one in arrays]) for name in arrays[0]}


def model_flops(params: Any, experiment: DecoderExperiment, positions: int, pairs: int) -> float:
    """FLOPs of a training step: weights times positions, and attention over `pairs` of them."""
    model, flat = experiment.model, jax.tree_util.tree_leaves_with_path(params)
    weights = sum(leaf.size for path, leaf in flat if path[-1].key == "kernel" and path[0].key != "head")
    weights += model.width * model.vocabulary.size
    attention = 4.0 * pairs * model.heads * model.head_size * model.layers
    return TRAINING_FACTOR * (2.0 * weights * positions + attention)


def measure_attention(experiment: DecoderExperiment, batch: dict[str, np.ndarray], runs: int) -> dict[str, float]:
    """TFLOP/s of one layer's attention over the rows, forward and with its backward pass."""
    model = experiment.model
    rows, length = batch["tokens"].shape
    start, end = jnp.asarray(batch["attend_start"]), jnp.asarray(batch["attend_end"])
    shapes = [(rows, length, heads, model.head_size) for heads in (model.heads, model.kv_heads, model.kv_heads)]
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = [jax.random.normal(key, shape, model.compute_dtype) for key, shape in zip(keys, shapes)]

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, k, v, start, end, implementation=model.attention)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return forward(q, k, v).astype(jnp.float32).sum()

    flops = 4.0 * int((batch["attend_end"] - batch["attend_start"]).sum()) * model.heads * model.head_size
    programs = {"forward": (jax.jit(forward), 1), "forward_backward": (jax.jit(jax.grad(loss, (0, 1, 2))), 3)}
    rates = {}
    for name, (program, factor) in programs.items():
        _, times = seconds_of(lambda program=program: program(*arrays), runs)
        rates[f"attention_{name}_tflops"] = factor * flops / steady(times) / 1e12
    return rates


def measure(arguments: argparse.Namespace, length: int) -> dict[str, Any]:
    """One row length."""
    model = decoder_config(arguments)
    batch = packed_rows(model.vocabulary, arguments.rows, length, arguments.level)
    experiment = DecoderExperiment(
        model=model,
        pipeline=PipelineConfig(row_length=length),
        train=TrainConfig(batch_size=arguments.rows),
        mesh=sharding.MeshConfig(fsdp=-1, data=1),
    )
    task = RandomRows(experiment, batch)
    mesh, rules = sharding.make_mesh(experiment.mesh), sharding.make_rules()
    layout = make_layout(task, experiment.optimizer, experiment.train.steps, mesh, rules)
    begin = time.perf_counter()
    step = compile_step(task, layout, experiment.seed, task.batch_specs()[0])
    compile_seconds = time.perf_counter() - begin
    placed = jax.device_put(batch, sharding.batch_sharding(mesh, rules))
    held = {"state": init_state(task, layout, experiment.seed)}

    def one_step() -> Any:
        held["state"], metrics = step.call(held["state"], {}, placed)
        return metrics

    _, times = seconds_of(one_step, arguments.runs)
    held.clear()
    positions, pairs = arguments.rows * length, int((batch["attend_end"] - batch["attend_start"]).sum())
    params, seconds = meta.unbox(layout.abstract.params), steady(times)
    flops, dense = (model_flops(params, experiment, positions, count) for count in (pairs, positions * length))
    device, devices = jax.devices()[0], len(jax.devices())
    peak = peak_flops(device, arguments.peak_tflops * 1e12)
    return {
        "preset": arguments.preset,
        "change": arguments.change,
        "parameters": num_parameters(params),
        "state_bytes": num_bytes(layout.abstract),
        "row_length": length,
        "rows": arguments.rows,
        "level": arguments.level,
        "visible_share": pairs / (positions * length),
        "platform": sharding.platform(),
        "device": device.device_kind,
        "devices": devices,
        "compile_seconds": compile_seconds,
        "step_seconds": seconds,
        "tokens_per_second": positions / seconds,
        "model_tflops_per_second": flops / seconds / devices / 1e12,
        "mfu": flops / seconds / devices / peak if peak else None,
        "dense_mfu": dense / seconds / devices / peak if peak else None,
        **measure_attention(experiment, batch, arguments.runs),
        "temporary_bytes": step.memory["temporaries"],
        "peak_bytes": peak_memory(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One line a row length."""
    heads = ("row length", "step s", "tokens/s", "TFLOP/s", "MFU", "dense MFU", "visible", "attn fwd", "attn fwd+bwd")
    lines = ["".join(f"{head:>14}" for head in heads)]
    for row in rows:
        shares = [f"{row[name]:.1%}" if row[name] is not None else "-" for name in ("mfu", "dense_mfu")]
        cells = [
            str(row["row_length"]),
            f"{row['step_seconds']:.3f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['model_tflops_per_second']:.3g}",
            *shares,
            f"{row['visible_share']:.1%}",
            f"{row['attention_forward_tflops']:.3g}",
            f"{row['attention_forward_backward_tflops']:.3g}",
        ]
        lines.append("".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_model_flags(parser, "large")
    parser.add_argument("--row_length", type=int, nargs="+", default=[8192, 16384])
    parser.add_argument("--rows", type=int, default=1, help="of the batch, over all devices")
    parser.add_argument("--level", type=int, default=512, choices=(256, 512, 1024), help="of the pictures")
    parser.add_argument("--peak_tflops", type=float, default=0.0)
    parser.add_argument("--runs", type=int, default=10, help="steps after the first")
    arguments = parser.parse_args()
    rows = []
    for length in arguments.row_length:
        rows.append(measure(arguments, length))
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()

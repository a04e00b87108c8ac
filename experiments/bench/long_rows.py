"""Rows of 65,536 positions with five 1024-level images: does a step fit, and do all chips have equally much to do?

    python experiments/bench/long_rows.py balance
    python experiments/bench/long_rows.py step      (28 layers, context 8 x fsdp 8 on v5p:4x4x4)
    python experiments/bench/long_rows.py step --topology v5e:16x16 --fsdp 32

"step" compiles the real training step of the 7B decoder (loss, gradients, AdamW, float32 parameters and moments,
bfloat16 compute) for absent TPUs; it needs `pip install jax[tpu]` and no TPU, and says nothing about speed. Bytes are
one chip's, in GiB; "peak" includes the arguments and is what counts against the chip's memory. "balance" needs neither:
it counts how the visible pairs, and the pairs in blocks that splash attention computes, are spread over the parts of
the context axis, with queries attended where they lie and with halves exchanged, as
nextflow_jax/ops/attention/sharded.py does. Both print JSON.

What "step" printed with jax 0.10.2 and libtpu 0.0.42.1, 28 layers (7.85 billion parameters), remat "full":

    topology   mesh                 rows  arguments  temporary  peak
    v5p:4x4x4  context 8 x fsdp 8      8       1.39       8.52   6.90
    v5p:4x4x4  the same, --copies      8      10.98      13.90  20.25
    v5p:4x4x4  fsdp 64                64       1.39      40.32  27.50    (one row a chip: no context axis)
    v5e:16x16  context 8 x fsdp 32    32       0.41       6.23   5.65
    v6e:16x16  context 8 x fsdp 32    32       0.41       6.93   5.94
    v5p:2x2x1  fsdp 2 x tensor 2       2       5.02       4.34   8.25    (2 layers, length 16,384)

What "balance" printed: the busiest part's pairs over the mean of all parts'; 0.514 of all pairs are visible, 0.525 to
0.529 are computed:

                 visible                 computed
    parts    in order  exchanged    in order  exchanged
        2       1.489      1.005       1.476      1.006
        4       1.725      1.014       1.708      1.017
        8       1.858      1.015       1.834      1.021
       16       1.893      1.028       1.867      1.042
"""

import argparse
import json
import os
import time
from typing import Any

# Set before JAX loads: the TPU compiler looks for a TPU's host otherwise.
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from nextflow_jax import sharding  # noqa: E402
from nextflow_jax.data.pipeline import PipelineConfig  # noqa: E402
from nextflow_jax.models.presets import decoder_preset  # noqa: E402
from nextflow_jax.ops.attention import splash  # noqa: E402
from nextflow_jax.ops.attention.sharded import computed_by  # noqa: E402
from nextflow_jax.scales import level_schedule  # noqa: E402
from nextflow_jax.sequence import ImageSegment, Sequence, SequenceConfig, TextSegment, flatten, pack_row  # noqa: E402
from nextflow_jax.training.experiment import DecoderExperiment  # noqa: E402
from nextflow_jax.training.settings import TrainConfig  # noqa: E402
from nextflow_jax.training.state import make_layout, num_parameters  # noqa: E402
from nextflow_jax.training.step import lower_step  # noqa: E402
from nextflow_jax.training.tasks.planned import plan_task  # noqa: E402
from nextflow_jax.vocabulary import Vocabulary  # noqa: E402

VOCABULARY = Vocabulary(text_size=151_936, codebook_size=32_768)
CODE_DIM, MAX_SCALES = 40, 19
IMAGES = 5
"""Of the 1024 level, in a row of 65,536; shorter rows hold as many as fit."""


def long_row(length: int) -> Sequence:
    """One document that fills the row: each image after its share of the text."""
    schedule = level_schedule(1024)
    images = min(IMAGES, (length - 2) // (schedule.num_tokens + 1))
    codes = np.zeros(schedule.num_tokens, np.int32)
    words = length - 2 - images * (schedule.num_tokens + 1)
    texts = np.array_split(np.zeros(words, np.int32), images + 1)
    segments = [TextSegment(texts[0])]
    for text in texts[1:]:
        segments += [ImageSegment(schedule, codes, codes), TextSegment(text)]
    return pack_row([flatten(segments, VOCABULARY, SequenceConfig())], length, VOCABULARY)


def compile_step(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compiles the training step; a program that does not fit gives the compiler's message instead."""
    devices = list(topologies.get_topology_desc(platform="tpu", topology_name=arguments.topology).devices)
    model = decoder_preset(
        "qwen2_5_vl_7b", VOCABULARY, CODE_DIM, MAX_SCALES, layers=arguments.layers, remat=arguments.remat
    )
    mesh = sharding.make_mesh(
        sharding.MeshConfig(fsdp=arguments.fsdp, tensor=arguments.tensor, context=arguments.context), devices
    )
    overrides = (("embed", ("fsdp",)),) if arguments.copies else ()
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    pipeline = PipelineConfig(row_length=arguments.length)
    experiment = DecoderExperiment(model=model, train=TrainConfig(batch_size=rows), pipeline=pipeline)
    task = plan_task(experiment).task
    layout = make_layout(task, experiment.optimizer, 1000, mesh, sharding.make_rules(overrides))
    result = {"chips": len(devices), "rows": rows, "parameters": num_parameters(layout.abstract.params)}
    begin = time.perf_counter()
    try:
        lowered = lower_step(task, layout, 0, task.batch_specs()[0])
        kernels = lowered.as_text().count("tpu_custom_call")
        memory = lowered.compile(compiler_options={"exec_time_optimization_effort": arguments.effort}).memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**result, "fits": False, "compiler_says": str(error)[:600]}
    return {
        **result,
        "fits": True,
        "kernels": kernels,
        "arguments_gib": round(memory.argument_size_in_bytes / 2**30, 2),
        "temporary_gib": round(memory.temp_size_in_bytes / 2**30, 2),
        "peak_gib": round(memory.peak_memory_in_bytes / 2**30, 2),
        "compile_seconds": round(time.perf_counter() - begin, 1),
    }


def count_balance(arguments: argparse.Namespace) -> dict[str, Any]:
    """The busiest part's pairs over the mean, with queries in order and with exchanged halves."""
    row, length, parts = long_row(arguments.length), arguments.length, arguments.context
    block = splash.block_for(length // parts), splash.block_for(length)
    touched = splash.touched_blocks(jnp.asarray(row.attend_start), jnp.asarray(row.attend_end), length, *block)
    counted = {
        "visible": (row.attend_end - row.attend_start).astype(np.int64),
        "computed": np.repeat(np.asarray(touched).sum(axis=1), block[0]) * block[1],
    }
    orders = {"in_order": [half // 2 for half in range(2 * parts)], "exchanged": computed_by(parts)}
    result = {"length": length, "parts": parts, "blocks": block}
    for what, pairs in counted.items():
        halves = pairs.reshape(2 * parts, -1).sum(axis=1)
        result[f"{what}_of_all"] = round(int(pairs.sum()) / length**2, 4)
        for order, place in orders.items():
            load = np.bincount(place, weights=halves)
            result[f"{what}_{order}"] = round(float(load.max() / load.mean()), 3)
    return result


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("step", "balance"))
    parser.add_argument("--topology", default="v5p:4x4x4")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--length", type=int, default=65_536)
    parser.add_argument("--context", type=int, default=8)
    parser.add_argument("--fsdp", type=int, default=8)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--remat", default="full")
    parser.add_argument("--copies", action="store_true", help="of the parameters, on the devices that share a row")
    parser.add_argument(
        "--effort",
        type=float,
        default=-1.0,
        help="of the compiler: -1 compiles several times faster than 0, its default",
    )
    arguments = parser.parse_args()
    result = compile_step(arguments) if arguments.what == "step" else count_balance(arguments)
    print(json.dumps({**vars(arguments), **result}), flush=True)


if __name__ == "__main__":
    main()

"""Does sampling fit TPUs, and is its cache updated in place? Compiles a scale for them on any machine, prints bytes.

    python -m experiments.bench.sampling_aot --preset qwen2_5_vl_7b --level 1024 --batch 8 --topology v5p:2x2x1
    python -m experiments.bench.sampling_aot --preset qwen2_5_vl_7b --level 1024 --batch 8 --topology v5e:2x2 --tensor 4

Needs `pip install jax[tpu]` and no TPU. The last scale is the largest program of a picture. Weights are split over the
tensor axis by the table of nextflow_jax/sharding.py, in the compute dtype; the cache by heads. Prints one JSON object;
bytes are one chip's: "peak_bytes" includes the arguments and counts against "limit_bytes"; "aliased_bytes" is what the
donated rows give to the result; "cache_copies" are operations that make a whole new cache and should be none.

What it printed for the 7B shape, 1024 level, batch 8 with guidance (16 rows, 10,240 slots), GiB a chip, with jax 0.10.2
and libtpu 0.0.42.1; no copies of the cache in either:

    v5p, one chip             weights 14.41, cache 8.75, temporaries 3.22, peak 26.38 of 95.74
    v5e:2x2, 4 chips          weights  3.60, cache 2.19, temporaries 2.83, peak  7.72 of 15.75
"""

import argparse
import json
import os
import re
import time
from typing import Any

# Set before JAX loads: the TPU compiler looks for a TPU's host otherwise.
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax.core import meta  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from experiments.bench.random_decoder import add_model_flags, decoder_config, num_bytes  # noqa: E402
from nextflow_jax import sharding  # noqa: E402
from nextflow_jax.aot.chips import CHIPS  # noqa: E402
from nextflow_jax.models.cache import make_cache  # noqa: E402
from nextflow_jax.models.decoder import Decoder, DecoderInputs  # noqa: E402
from nextflow_jax.sampling.batches import LEAST_SLOTS, round_up  # noqa: E402
from nextflow_jax.sampling.phases import Drawing, Draws, Phases  # noqa: E402
from nextflow_jax.sampling.steps import Rows  # noqa: E402
from nextflow_jax.sampling.weights import Weights  # noqa: E402
from nextflow_jax.scales import ScaleSchedule, level_schedule  # noqa: E402
from nextflow_jax.sequence import SequenceConfig, image_positions  # noqa: E402

COPIES = {"copy", "transpose", "convert", "select", "broadcast", "concatenate"}


def abstract_arguments(
    arguments: argparse.Namespace, schedule: ScaleSchedule, k: int, mesh: Mesh
) -> tuple[Weights, Rows, Drawing | None, Draws, jax.Array]:
    """What `draw_scale` takes, as shapes with shardings."""
    config, rules, batch = decoder_config(arguments, param_dtype="bfloat16"), sharding.make_rules(), arguments.batch
    rows, scales = 2 * batch, schedule.num_scales
    slots = round_up(arguments.prompt + image_positions(schedule), LEAST_SLOTS)
    inputs = DecoderInputs.zeros(1, 1, SequenceConfig().taps)
    boxed = jax.eval_shape(lambda: Decoder(config).init(jax.random.key(0), inputs))

    def others() -> tuple[Rows, Drawing | None, Draws, jax.Array]:
        standing = Rows(
            make_cache(config, rows, slots), jnp.zeros(rows), jnp.zeros((batch, config.width), config.compute_dtype)
        )
        drawing = Drawing(jnp.zeros((batch, schedule.counts[k - 1]), jnp.int32), None) if k else None
        keys = jax.vmap(jax.random.key)(jnp.zeros(batch, jnp.uint32))
        return standing, drawing, Draws(keys, *[jnp.ones((batch, scales))] * 4), jnp.ones(batch, bool)

    def place(array: jax.ShapeDtypeStruct, placement: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=placement)

    weights = jax.tree.map(place, meta.unbox(boxed), sharding.shardings_of(boxed, mesh, rules))
    by_heads = NamedSharding(mesh, PartitionSpec(None, None, rules["kv_heads"], None, None))
    everywhere = sharding.replicated(mesh)
    rest = jax.tree.map(lambda array: place(array, by_heads if array.ndim == 5 else everywhere), jax.eval_shape(others))
    return Weights(weights, None), *rest


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compiles one scale and reads the bytes; a program that does not fit gives the compiler's message instead."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=arguments.topology)
    mesh = sharding.make_mesh(sharding.MeshConfig(tensor=arguments.tensor), topology.devices[: arguments.tensor])
    schedule = level_schedule(arguments.level)
    k = arguments.scale % schedule.num_scales
    shapes = abstract_arguments(arguments, schedule, k, mesh)
    phases = Phases(decoder_config(arguments, param_dtype="bfloat16"), SequenceConfig())
    cache, limit = shapes[1].cache, CHIPS[arguments.topology.split(":")[0]].hbm_limit
    result = {
        "chips": arguments.tensor,
        "cells": schedule.counts[k],
        "slots": cache.capacity,
        "limit_bytes": limit,
        "weight_bytes": num_bytes(shapes[0]) // arguments.tensor,
        "cache_bytes": num_bytes((cache.keys, cache.values)) // arguments.tensor,
    }
    begin = time.perf_counter()
    try:
        with sharding.logical_context(mesh, sharding.make_rules()):
            compiled = phases.draw_scale.lower(*shapes, schedule=schedule, k=k).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**result, "fits": False, "compiler_says": str(error)[:600]}
    memory = compiled.memory_analysis()
    shape = ",".join(map(str, cache.keys.sharding.shard_shape(cache.keys.shape)))
    made = re.findall(rf"= bf16\[{shape}\]\S* ([\w-]+)\(", compiled.as_text())
    return {
        **result,
        "fits": memory.peak_memory_in_bytes <= limit,
        "aliased_bytes": memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "cache_copies": [name for name in made if name in COPIES],
        "compile_seconds": round(time.perf_counter() - begin, 1),
    }


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_model_flags(parser, "qwen2_5_vl_7b")
    parser.add_argument("--topology", default="v5p:2x2x1")
    parser.add_argument("--tensor", type=int, default=1, help="chips that share the weights and the heads")
    parser.add_argument("--level", type=int, default=1024, choices=(256, 512, 1024))
    parser.add_argument("--batch", type=int, default=8, help="pictures; guidance doubles the rows")
    parser.add_argument("--prompt", type=int, default=80, help="positions before the picture")
    parser.add_argument("--scale", type=int, default=-1, help="counted from 0; -1 is the last")
    arguments = parser.parse_args()
    print(json.dumps({**vars(arguments), **measure(arguments)}), flush=True)


if __name__ == "__main__":
    main()

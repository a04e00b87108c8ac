"""What each remat policy costs in memory, for the decoder's real training step.

    python -m experiments.bench.remat --policies full attention dots          (v5p:4x4x4, fsdp 64, 28 layers)
    python -m experiments.bench.remat --topology v5e:16x16 --policies full offload

Compiles the step (loss, gradients, AdamW; float32 parameters and moments, bfloat16 compute, parameters split over all
chips, one row of --length positions a chip) for absent TPUs, a policy after the other; needs `pip install jax[tpu]` and
no TPU. Prints a line of JSON a policy. Bytes are one chip's, in GiB: "peak" includes the arguments and is what counts
against the chip's memory, "host" is what waits in the host's. Nothing is run, so this says nothing about speed.

What it printed for v5p:4x4x4 (fsdp 64; 7.85B parameters, one row of 16,384 a chip, splash attention) with --effort -1,
jax 0.10.2 and libtpu 0.0.42.1:

    policy           arguments  temporary   peak   host
    offload               1.39       8.40   6.55   3.06
    full                  1.39      11.98   9.48      0
    attention             1.39      17.31  12.97      0
    dots                  1.39      51.10  48.10      0
    dots_attention        1.39      53.67  51.09      0

A v5p chip has 95.74. For v5e:16x16 (fsdp 256; 15.75 a chip) "full" peaks at 8.39. "none" was not compiled, the other
policies not for v5e.
"""

import argparse
import json
import time
from typing import Any

# The module sets what the TPU compiler needs before JAX loads.
from experiments.bench import long_rows  # isort: skip

import jax
from jax.experimental import topologies

from nextflow_jax import sharding
from nextflow_jax.data.pipeline import PipelineConfig
from nextflow_jax.models.presets import decoder_preset
from nextflow_jax.models.remat import REMAT_POLICIES
from nextflow_jax.training.experiment import DecoderExperiment
from nextflow_jax.training.settings import TrainConfig
from nextflow_jax.training.state import make_layout, num_parameters
from nextflow_jax.training.step import lower_step
from nextflow_jax.training.tasks.planned import plan_task

GIB = 2**30


def measure(policy: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compiles the step with a policy; a program that does not fit gives the compiler's message instead."""
    devices = list(topologies.get_topology_desc(platform="tpu", topology_name=arguments.topology).devices)
    model = decoder_preset(
        "qwen2_5_vl_7b",
        long_rows.VOCABULARY,
        long_rows.CODE_DIM,
        long_rows.MAX_SCALES,
        layers=arguments.layers,
        remat=policy,
        attention=arguments.attention,
    )
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=len(devices)), devices)
    train = TrainConfig(batch_size=len(devices) * arguments.accumulate, accumulate=arguments.accumulate)
    experiment = DecoderExperiment(model=model, train=train, pipeline=PipelineConfig(row_length=arguments.length))
    task = plan_task(experiment).task
    layout = make_layout(task, experiment.optimizer, 1000, mesh, sharding.make_rules())
    result = {"policy": policy, "chips": len(devices), "parameters": num_parameters(layout.abstract.params)}
    begin = time.perf_counter()
    try:
        lowered = lower_step(task, layout, 0, task.batch_specs()[0], arguments.accumulate)
        options = {"exec_time_optimization_effort": arguments.effort}
        memory = lowered.compile(compiler_options=options).memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**result, "fits": False, "compiler_says": str(error)[:300]}
    return {
        **result,
        "fits": True,
        "arguments_gib": round(memory.argument_size_in_bytes / GIB, 2),
        "temporary_gib": round(memory.temp_size_in_bytes / GIB, 2),
        "peak_gib": round(memory.peak_memory_in_bytes / GIB, 2),
        "host_gib": round(memory.host_temp_size_in_bytes / GIB, 2),
        "compile_seconds": round(time.perf_counter() - begin, 1),
    }


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--topology", default="v5p:4x4x4")
    parser.add_argument("--policies", nargs="+", default=list(REMAT_POLICIES), choices=["none", *REMAT_POLICIES])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--length", type=int, default=16_384)
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--accumulate", type=int, default=1, help="rows a chip, one after another")
    parser.add_argument("--effort", type=float, default=0.0, help="of the compiler: -1 compiles several times faster")
    arguments = parser.parse_args()
    for policy in arguments.policies:
        print(json.dumps(measure(policy, arguments)), flush=True)


if __name__ == "__main__":
    main()

"""The flash kernels compiled for A100 and H100 on a machine without a GPU: seconds and temporaries of each shape.

    pip install --no-deps jax-cuda13-plugin==JAX jax-cuda13-pjrt==JAX nvidia-cuda-nvcc nvidia-nvvm
    JAX_PLATFORMS=cpu python -m experiments.bench.attention_cuda [--gpus h100 a100]

(JAX: the version of jax that is installed; from the repository's root) compiles value and gradients through XLA, Triton
and ptxas to machine code, and prints a line of JSON a GPU and shape. That proves that every operation has a lowering,
that tiles fit into the shared memory of that GPU, and how much memory the backward pass asks for; neither values nor
speed. With XLA_FLAGS=--xla_dump_to=DIR the PTX is kept, and `ptxas -v -arch=sm_90a DIR/FILE.ptx` tells registers and
spills; where ptxas is not found, --xla_gpu_cuda_data_dir=SITE_PACKAGES/nvidia/cu13 says where it is.

Result: (jax 0.10.2, two busy cores) all shapes compile for both, in 7 to 26 s each. Nothing but the gradient of the
output, which the loss makes here, is alive beside arguments and results: 121 MB at 16,384 positions of the 7B decoder,
485 MB at 65,536. At 16,384, on an H100, all products are wgmma fed by cp.async; registers of the kernels of values,
queries and keys: 186, 137, 221, no spills. On an A100: 248, 197, 255, with 40 bytes of spills in the last.
"""

import argparse
import functools
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from nextflow_jax.ops.attention import flash

GPUS = {
    # Name, compute capability, multiprocessors, shared memory of one and of a program, bytes.
    "a100": ("NVIDIA A100-SXM4-80GB", 8, 108, 167936, 166912),
    "h100": ("NVIDIA H100 80GB HBM3", 9, 132, 233472, 232448),
}

TARGET = """
gpu_device_info {{
  cuda_compute_capability {{ major: {1} minor: 0 }}
  core_count: {2} fpus_per_core: 128 clock_rate_ghz: 1.98
  shared_memory_per_core: {3} shared_memory_per_block_optin: {4} shared_memory_per_block: 49152
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 2000000000000 l2_cache_size: 41943040 device_memory_size: 84978434048
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{0}"
"""

SHAPES = [
    (1, 16384, 16384, 28, 4, 128, "bfloat16"),
    (1, 65536, 65536, 28, 4, 128, "bfloat16"),
    (1, 8192, 8192, 16, 2, 128, "bfloat16"),
    (1, 4096, 4096, 14, 2, 64, "bfloat16"),
    (1, 1000, 1000, 4, 2, 128, "float32"),
    (1, 1000, 1000, 4, 2, 256, "bfloat16"),
    (2, 1, 777, 28, 4, 128, "bfloat16"),
]
"""B, S, M, H, G, A, dtype: the 7B and 3B decoders, long rows, small heads, float32, wide heads, a decoding step."""


def value_and_gradients(*x: jax.Array) -> Any:
    """Of the sum of all values, for (q, k, v, start, end)."""
    attend = functools.partial(flash.attend, interpret=False)
    return jax.value_and_grad(lambda *qkv: attend(*qkv, *x[3:]).astype(jnp.float32).sum(), (0, 1, 2))(*x[:3])


def compile_for(gpu: str, shape: tuple[Any, ...]) -> dict[str, Any]:
    """Compiles one shape for one GPU."""
    rows, length, keys, heads, groups, size, dtype = shape
    target = TARGET.format(*GPUS[gpu])
    topology = topologies.get_topology_desc("", platform="cuda", topology="1x1x1", target_config=target)
    place = SingleDeviceSharding(topology.devices[0])
    q = jax.ShapeDtypeStruct((rows, length, heads, size), dtype)
    k = jax.ShapeDtypeStruct((rows, keys, groups, size), dtype)
    ranges = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    start = time.perf_counter()
    lowered = jax.jit(value_and_gradients, in_shardings=place, out_shardings=place).lower(q, k, k, ranges, ranges)
    memory = lowered.compile().memory_analysis()
    return {
        "gpu": gpu,
        "shape": shape,
        "compile_seconds": round(time.perf_counter() - start, 1),
        "arguments_mb": memory.argument_size_in_bytes / 1e6,
        "temporaries_mb": memory.temp_size_in_bytes / 1e6,
    }


def main() -> None:
    """Compiles every shape for every GPU."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpus", nargs="+", choices=sorted(GPUS), default=sorted(GPUS))
    options = parser.parse_args()
    for gpu in options.gpus:
        for shape in SHAPES:
            print(json.dumps(compile_for(gpu, shape)), flush=True)


if __name__ == "__main__":
    main()

"""Memory of head + cross-entropy with both gradients: plain, scanned over tokens, and ours, over columns.

    python -m experiments.bench.cross_entropy                                   compiled for this machine's CPU
    python -m experiments.bench.cross_entropy --topology v5p:4x4x4              the paper's shape, for absent TPUs

Compiles and runs nothing; the second needs `pip install jax[tpu]` and no TPU. Prints a line of JSON a way and block,
then a table. Bytes are one device's: "temporary" is an upper bound, "peak" includes arguments and results and is what
counts against a chip's memory. Ways: "plain" keeps all logits, "tokens" scans over chunks of tokens and computes their
logits again in the backward pass, with one gather of the head, "fused" is nextflow_jax.ops.cross_entropy.fused.

What it printed for v5p:4x4x4 (fsdp 64; 16,384 tokens a chip, width 3584, 184,832 ids, bfloat16 products), GiB a chip,
with jax 0.10.2 and libtpu 0.0.42.1:

    way             temporary    peak
    plain               13.75   14.05
    tokens 512           3.53    3.47     the head's gradient summed in bfloat16, 32 times
    fused 512            4.72    2.98
    fused 1024           4.73    2.99
    fused 2048           4.76    3.00     the default at 16,384 tokens
    fused 4096           4.81    3.16

For v5e:8x8 (fsdp 64): plain 15.28 at its peak, which leaves the rest of a step nothing of a chip's 15.75; tokens 512
3.47, fused 2048 3.00.

Of the 3.00 GiB the gathered head and its gradient take 1.23 each. Blocks of 2048 columns cost no more memory than small
ones, and the hidden states' float32 gradient is read and written once a block: fewer are better.
"""

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

if "--topology" in " ".join(sys.argv):
    # Set before JAX loads: the TPU compiler looks for a TPU's host otherwise.
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax import lax  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

from nextflow_jax import sharding  # noqa: E402
from nextflow_jax.ops.cross_entropy import fused, reference  # noqa: E402
from nextflow_jax.ops.cross_entropy.reference import TokenLosses  # noqa: E402

GIB = 2**30


def scan_tokens(mesh: Mesh, chunk: int, hidden: jax.Array, head: jax.Array, targets: jax.Array) -> TokenLosses:
    """The losses, `chunk` tokens of a device at once; the gathered head's gradient is summed in its own dtype."""

    def on_device(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> TokenLosses:
        head = lax.all_gather(head.astype(hidden.dtype), "fsdp", axis=0, tiled=True)

        @jax.checkpoint
        def one_chunk(arrays: tuple[jax.Array, jax.Array]) -> TokenLosses:
            return reference.linear_cross_entropy(arrays[0], head, arrays[1])

        chunks = (hidden.reshape(-1, 1, chunk, hidden.shape[-1]), targets.reshape(-1, 1, chunk))
        return jax.tree.map(lambda x: x.reshape(targets.shape), lax.map(one_chunk, chunks))

    rows = PartitionSpec("fsdp")
    run = jax.shard_map(on_device, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    return run(hidden, head, targets)


def ways(mesh: Mesh, tokens: list[int], columns: list[int]) -> dict[str, Callable[..., TokenLosses]]:
    """Name -> losses of (hidden, head, targets)."""
    return {
        "plain": reference.linear_cross_entropy,
        **{f"tokens {chunk}": functools.partial(scan_tokens, mesh, chunk) for chunk in tokens},
        **{f"fused {block}": functools.partial(fused.linear_cross_entropy, block=block) for block in columns},
    }


def measure(way: Callable[..., TokenLosses], mesh: Mesh, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compiles the weighted loss and both gradients for the mesh; bytes of one device."""
    rows = mesh.shape["fsdp"]
    split = NamedSharding(mesh, PartitionSpec("fsdp"))

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

    hidden = array((rows, arguments.tokens, arguments.width), jnp.dtype(arguments.dtype))
    head = array((arguments.width, arguments.vocabulary), jnp.float32)
    targets = array((rows, arguments.tokens), jnp.int32)
    weights = array((rows, arguments.tokens), jnp.float32)

    def loss(hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        losses = way(hidden, head, targets)
        return jnp.sum(weights * (losses.cross_entropy + 1e-4 * jnp.square(losses.log_normaliser)))

    everything = (hidden, head, targets, weights)
    gradients = jax.jit(jax.value_and_grad(loss, (0, 1)), out_shardings=(None, (split, split)))
    begin = time.perf_counter()
    with sharding.logical_context(mesh, sharding.make_rules()):
        lowered = gradients.lower(*everything)
    try:
        memory = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"fits": False, "compiler_says": str(error)[:300]}
    return {
        "fits": True,
        "temporary_gib": round(memory.temp_size_in_bytes / GIB, 3),
        "peak_gib": round(memory.peak_memory_in_bytes / GIB, 3),
        "compile_seconds": round(time.perf_counter() - begin, 1),
    }


def main() -> None:
    """See the module's description."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--topology", default="", help="a TPU topology, e.g. v5p:4x4x4; empty: this machine's devices")
    parser.add_argument("--tokens", type=int, default=0, help="of a device; 16,384 for TPUs, else 2,048")
    parser.add_argument("--width", type=int, default=0, help="3584 for TPUs, else 256")
    parser.add_argument("--vocabulary", type=int, default=0, help="184,832 for TPUs, else 16,384")
    parser.add_argument("--dtype", default="", help="of the product; bfloat16 for TPUs, else float32")
    parser.add_argument("--chunks", type=int, nargs="*", default=(512,), help="tokens at once")
    parser.add_argument("--blocks", type=int, nargs="*", default=(512, 1024, 2048, 4096), help="columns at once")
    parser.add_argument("--only", default="", help="ways whose name begins so")
    arguments = parser.parse_args()
    real = (16_384, 3584, 184_832, "bfloat16") if arguments.topology else (2048, 256, 16_384, "float32")
    for name, value in zip(("tokens", "width", "vocabulary", "dtype"), real):
        setattr(arguments, name, getattr(arguments, name) or value)
    devices = jax.devices()
    if arguments.topology:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=arguments.topology).devices
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=len(devices)), devices)
    print(json.dumps({**vars(arguments), "devices": len(devices)}), flush=True)
    lines = []
    for name, way in ways(mesh, list(arguments.chunks), list(arguments.blocks)).items():
        if name.startswith(arguments.only):
            result = measure(way, mesh, arguments)
            print(json.dumps({"way": name, **result}), flush=True)
            numbers = "".join(f"{result.get(key, ''):>16}" for key in ("temporary_gib", "peak_gib", "compile_seconds"))
            lines.append(f"{name:<14}{numbers}" if result["fits"] else f"{name:<14}    does not fit")
    print("\n".join([f"{'way':<14}{'temporary GiB':>16}{'peak GiB':>16}{'compile s':>16}", *lines]))


if __name__ == "__main__":
    main()

"""Do the compilers know the flags of launch/flags.sh? Asks each of them, and prints JSON lines.

    python experiments/bench/launch_flags.py

TPU: libtpu starts with a flag (LIBTPU_INIT_ARGS) and stops at a name it does not know; then the whole set of every
generation compiles a small FSDP program, with two slices where there is a topology for it. GPU: jaxlib reads XLA_FLAGS
whatever the device and stops at unknown names; whether a GPU runs faster is not asked. As a control, a name that does
not exist must be refused by both. Nothing is run and nothing timed: the flags' worth is MaxText's and NVIDIA's word.

Needs `pip install jax[tpu]` and no TPU. Cost: about four minutes on two CPU cores.

Result (jax 0.10.2, libtpu 0.0.42.1): every row is known; all sets compile, v5e, v5p and v6e with two slices too (TPU7x
has no topology of several slices in this libtpu); the control is refused.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]

CONTROL = "--xla_tpu_no_such_flag=true"
PROGRAMS = {"v5e": ("v5e:4x4", 2), "v5p": ("v5p:4x4x4", 2), "v6e": ("v6e:16x16", 2), "tpu7x": ("tpu7x:2x2x2", 1)}
"""Generation -> (topology, most slices) of the program compiled with its flags."""

STARTS = "import jax; jax.devices()"
COMPILES = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

name, slices = sys.argv[1], int(sys.argv[2])
topology = topologies.get_topology_desc(
    platform="tpu", topology_name=name, **({"num_slices": slices} if slices > 1 else {})
)
devices = sorted(topology.devices, key=lambda device: (getattr(device, "slice_index", 0), device.id))
mesh = Mesh(np.array(devices).reshape(slices, -1), ("slice", "fsdp"))
place = lambda *axes: NamedSharding(mesh, P(*axes))

def loss(weights, x):
    layer = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
    return (jax.lax.scan(layer, x, weights)[0].astype(jnp.float32) ** 2).mean()

gradient = jax.jit(
    jax.grad(loss),
    in_shardings=(place(None, "fsdp"), place(("slice", "fsdp"))),
    out_shardings=place(None, "fsdp"),
)
weights = jax.ShapeDtypeStruct((4, 1024, 1024), jnp.bfloat16)
gradient.lower(weights, jax.ShapeDtypeStruct((len(devices) * 128, 1024), jnp.bfloat16)).compile()
"""
ASKS = """
import sys
from jax.experimental import topologies
topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1])
"""


def flag_rows() -> list[tuple[tuple[str, ...], str, str]]:
    """(platforms, variable, value) of every row of launch/flags.sh."""
    table = subprocess.run(["bash", ROOT / "launch/flags.sh", "--table"], capture_output=True, text=True, check=True)
    rows = [line.split(" | ") for line in table.stdout.splitlines()]
    return [(tuple(row[0].split()), row[1], row[2]) for row in rows]


def accepted(program: str, variables: dict[str, str], *arguments: str) -> tuple[bool, str]:
    """Whether a Python program ends well with these variables, and the last line it said."""
    tpu = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-8"}
    # Others may be compiling on this machine: libtpu's lock is for processes that use a TPU.
    tpu["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    environment = {**os.environ, **tpu, "JAX_PLATFORMS": "cpu", **variables}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    return done.returncode == 0, (done.stderr.strip().splitlines() or [""])[-1]


def main() -> None:
    """See the module's description."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    rows = flag_rows()
    tpu = sorted({value for _, variable, value in rows if variable == "LIBTPU_INIT_ARGS"})
    for flag in [*tpu, CONTROL]:
        known, said = accepted(ASKS, {"LIBTPU_INIT_ARGS": flag}, "v5p:2x2x1")
        print(json.dumps({"compiler": "libtpu", "flag": flag, "known": known, **({} if known else {"said": said})}))
    for flag in [*sorted({value for _, variable, value in rows if variable == "XLA_FLAGS"}), CONTROL]:
        known, said = accepted(STARTS, {"XLA_FLAGS": flag})
        print(json.dumps({"compiler": "jaxlib", "flag": flag, "known": known, **({} if known else {"said": said})}))
    for platform, (topology, most) in PROGRAMS.items():
        flags = " ".join(value for platforms, _, value in rows if platform in platforms)
        for slices in range(1, most + 1):
            compiles, said = accepted(COMPILES, {"LIBTPU_INIT_ARGS": flags}, topology, str(slices))
            result = {"platform": platform, "topology": topology, "slices": slices, "compiles": compiles}
            print(json.dumps({**result, **({} if compiles else {"said": said})}), flush=True)


if __name__ == "__main__":
    main()

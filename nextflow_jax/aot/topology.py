"""Topologies by name: devices to compile for that are not there, described by libtpu, or simulated ones of this CPU."""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from nextflow_jax.aot.chips import CHIPS, Chip
from nextflow_jax.config import nearest
from nextflow_jax.errors import UserError

EXAMPLES = ("v5e:2x2", "v5e:16x16", "v6e:16x16", "v5p:2x2x1", "v5p:4x4x4", "v5p:4x4x8", "v5p:8x8x8", "tpu7x:4x4x4")

SIMULATED = "cpu"
_COUNT_FLAG = "xla_force_host_platform_device_count"

# What the TPU compiler looks for on a TPU's host and does not need here. It also locks a file, so that no two processes
# use one TPU; programs that only compile may run side by side.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of chips, equal and each connected by ICI; between them is the data center's network."""

    name: str
    generation: str
    shape: tuple[int, ...]
    """Chips of one slice along each dimension of the torus."""
    slices: int
    devices: Sequence[Any]
    """`jax.Device`s, of all slices."""

    @property
    def chip(self) -> Chip:
        """What is known about the chips."""
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        """Of all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def hbm_limit(self) -> int:
        """Bytes that a program may use on one device."""
        return self.chip.hbm_limit


def parse_topology(name: str) -> tuple[str, tuple[int, ...]]:
    """ "v5p:4x4x8" -> ("v5p", (4, 4, 8)): generation and chips along each dimension.

    Raises:
      UserError: not of this form, an unknown generation, or the wrong number of dimensions.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not match:
        raise UserError(f"--topology {name!r}: expects GENERATION:AxB or GENERATION:AxBxC; {_known()}")
    generation, shape = match[1].lower(), tuple(map(int, match[2].split("x")))
    if generation not in CHIPS:
        raise UserError(
            f"--topology {name!r}: {generation!r} is no generation; {nearest(generation, list(CHIPS))}; {_known()}"
        )
    axes = CHIPS[generation].torus_axes
    if len(shape) > 2 and axes == 2 and set(shape[2:]) == {1}:
        shape = shape[:2]
    if len(shape) != axes or min(shape) < 1:
        raise UserError(f"--topology {name!r}: {generation} has {axes} dimensions of at least one chip; {_known()}")
    return generation, shape


def open_topology(name: str, slices: int = 1) -> Topology:
    """The devices of `slices` slices of a named shape.

    JAX's own backend must be the CPU's (JAX_PLATFORMS=cpu), and, for simulated devices, not have started yet or have
    enough of them.

    Args:
      name: such as "v5p:4x4x4"; "cpu:8" are eight simulated devices.
      slices: how many of it.

    Raises:
      UserError: an unknown name, one that the compiler refuses, or no TPU compiler is installed.
    """
    generation, shape = parse_topology(name)
    if slices < 1:
        raise UserError(f"--slices {slices}: must be at least 1")
    devices = _simulated(name, slices * shape[0]) if generation == SIMULATED else _described(name, slices)
    return Topology(name, generation, shape, slices, devices)


def _described(name: str, slices: int) -> list[Any]:
    try:
        import libtpu  # noqa: F401  (asked for by JAX, which does not say that it is missing)
    except ImportError:
        raise UserError(
            f"--topology {name!r}: compiling for TPUs needs libtpu (a CPU is enough); pip install "
            "'nextflow_jax[tpu]', or pip install 'jax[tpu]'"
        ) from None
    from jax.experimental import topologies

    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options = {"num_slices": slices} if slices > 1 else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        said = str(error).partition("\n")[0]
        raise UserError(f"--topology {name!r}, --slices {slices}: the TPU compiler says: {said}; {_known()}") from error


def _simulated(name: str, count: int) -> list[Any]:
    if _COUNT_FLAG not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # the backend has started
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"--topology {name!r}: this process has {len(devices)} simulated devices, not {count}; set "
            f"XLA_FLAGS=--{_COUNT_FLAG}={count}"
        )
    return devices[:count]


def _known() -> str:
    return f"known, among others: {', '.join(EXAMPLES)}; {SIMULATED}:N simulates N devices"

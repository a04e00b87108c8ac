"""Memory in use, of this process's devices and of the process itself."""

import os
import pathlib
from collections.abc import Mapping, Sequence

import jax

_GIB = 2**30
_STATUS = pathlib.Path("/proc/self/statm")


def memory_in_use(device_stats: Sequence[Mapping[str, int] | None] | None = None) -> dict[str, float]:
    """GiB by the names of the metrics "memory/...": of the fullest device, of the process.

    What the platform does not tell is left out: devices of a CPU, hosts without /proc.

    Args:
      device_stats: `memory_stats()` of each device, this process's by default.
    """
    if device_stats is None:
        device_stats = [device.memory_stats() for device in jax.local_devices()]
    stats = [each or {} for each in device_stats]
    found = {}
    for name, key in (("device_gib", "bytes_in_use"), ("device_peak_gib", "peak_bytes_in_use")):
        sizes = [each[key] for each in stats if key in each]
        found |= {f"memory/{name}": max(sizes) / _GIB} if sizes else {}
    if _STATUS.is_file():
        resident_pages = int(_STATUS.read_text().split()[1])
        found["memory/host_gib"] = resident_pages * os.sysconf("SC_PAGE_SIZE") / _GIB
    return found

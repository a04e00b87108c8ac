"""JAX's persistent compilation cache, so that a restarted command does not compile again what it compiled before."""

import contextlib
import hashlib
import os
import pathlib
import platform
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

DIRECTORY_VARIABLE = "NEXTFLOW_JAX_CACHE"
"""Environment variable with the cache's folder; the empty string switches the cache off."""

_MINIMUM_COMPILE_SECONDS = 0.05


def enable(directory: str | os.PathLike | None = None) -> pathlib.Path | None:
    """Turns the cache on and returns its folder, or None when it is off.

    Programs compiled for a CPU use that CPU's instructions, so the folder has a part per processor kind: a home shared
    over the network never hands one machine another's code.

    Args:
      directory: the folder; by default `$NEXTFLOW_JAX_CACHE`, else `nextflow_jax` in the user's cache folder.
    """
    if directory is None:
        user_cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        directory = os.environ.get(DIRECTORY_VARIABLE, str(pathlib.Path(user_cache) / "nextflow_jax"))
        if not directory:
            return None
    folder = pathlib.Path(directory) / _processor_kind()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MINIMUM_COMPILE_SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return folder


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Within, every program is compiled: a compile's time can be told, and what comes of it be saved (an executable for
    a CPU that was itself read from a file cannot be loaded again)."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it asks only once whether it is on
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _processor_kind() -> str:
    description = platform.machine() + platform.processor()
    cpu_information = pathlib.Path("/proc/cpuinfo")
    if cpu_information.is_file():
        lines = cpu_information.read_text().splitlines()
        description += "".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
    return hashlib.sha256(description.encode()).hexdigest()[:12]

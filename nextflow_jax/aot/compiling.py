"""Compiles a planned program and says what it needs of a device's memory; one that does not fit is an answer, too."""

import re
import time
from typing import NamedTuple

import jax

from nextflow_jax import compile_cache
from nextflow_jax.aot.programs import PlannedProgram
from nextflow_jax.aot.topology import Topology

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_REFUSALS = (
    re.compile(r"\(([\d.]+)([KMGT])i?B?\) exceeds available HBM \(([\d.]+)([KMGT])"),
    re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"),
)
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


class Memory(NamedTuple):
    """Bytes on one device."""

    arguments: int
    """What is there before and after: the state, the batch, weights."""
    temporaries: int
    """What comes and goes, as the compiler adds it up: an upper bound, parts of it are never there together."""
    peak: int
    """The most at any moment, arguments included: what must fit."""
    host: int = 0
    """What waits in the host's memory meanwhile, for each device."""


class CompiledProgram(NamedTuple):
    """What the compiler made of a program."""

    memory: Memory
    """Of a program that was refused: the compiler's count of its temporaries, and on top of them its arguments."""
    seconds: float
    effort: float
    """Of the compiler, see `compile_program`."""
    compiled: jax.stages.Compiled | None
    """None: refused, it does not fit."""


def compile_program(program: PlannedProgram, topology: Topology, effort: float = 0.0) -> CompiledProgram:
    """Compiles, whatever a cache holds; takes up to minutes.

    Args:
      program: to compile.
      topology: that it was lowered for.
      effort: of the TPU compiler: 0, as training compiles; -1 is several times quicker and makes a slower program.

    Raises:
      jax.errors.JaxRuntimeError: the compiler failed for another reason than memory.
    """
    options = {"exec_time_optimization_effort": effort} if effort else None
    begin = time.perf_counter()
    try:
        with compile_cache.switched_off():
            compiled = program.lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        needed, _ = read_refusal(str(error))
        memory = Memory(program.argument_bytes, needed, program.argument_bytes + needed)
        return CompiledProgram(memory, time.perf_counter() - begin, effort, None)
    seconds = time.perf_counter() - begin
    return CompiledProgram(read_memory(compiled, topology.chip.simulated), seconds, effort, compiled)


def read_memory(compiled: jax.stages.Compiled, simulated: bool) -> Memory:
    """What a compiled program needs of a device.

    Args:
      compiled: the program.
      simulated: compiled for a CPU, whose compiler leaves the temporaries out of the peak it reports. It gives them one
        block beside arguments and results, so that there all of them count.
    """
    found = compiled.memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    whole = found.argument_size_in_bytes + results + found.temp_size_in_bytes
    return Memory(
        arguments=found.argument_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        peak=whole if simulated else found.peak_memory_in_bytes,
        host=found.host_temp_size_in_bytes + found.host_argument_size_in_bytes,
    )


def read_refusal(message: str) -> tuple[int, int]:
    """(needed, available) bytes of the compiler's message that a program does not fit; zeros where it does not tell."""
    for pattern in _REFUSALS:
        found = pattern.search(message)
        if found:
            needed, unit, available, other_unit = found.groups()
            return int(float(needed) * _UNITS[unit]), int(float(available) * _UNITS[other_unit])
    return 0, 0

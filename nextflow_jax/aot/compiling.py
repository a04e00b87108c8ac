"""Compiles a planned program and says what it needs of a device's memory; one that does not fit is an answer, too."""

import re
import time
from typing import NamedTuple

import jax

from nextflow_jax.aot.programs import PlannedProgram

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


def compile_program(program: PlannedProgram, effort: float = 0.0) -> CompiledProgram:
    """Compiles; takes up to minutes.

    Args:
      program: to compile.
      effort: of the TPU compiler: 0, as training compiles; -1 is several times quicker and makes a slower program.

    Raises:
      jax.errors.JaxRuntimeError: the compiler failed for another reason than memory.
    """
    options = {"exec_time_optimization_effort": effort} if effort else None
    begin = time.perf_counter()
    try:
        compiled = program.lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        needed, _ = read_refusal(str(error))
        memory = Memory(program.argument_bytes, needed, program.argument_bytes + needed)
        return CompiledProgram(memory, time.perf_counter() - begin, effort, None)
    found = compiled.memory_analysis()
    memory = Memory(
        arguments=found.argument_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        peak=found.peak_memory_in_bytes,
        host=found.host_temp_size_in_bytes + found.host_argument_size_in_bytes,
    )
    return CompiledProgram(memory, time.perf_counter() - begin, effort, compiled)


def read_refusal(message: str) -> tuple[int, int]:
    """(needed, available) bytes of the compiler's message that a program does not fit; zeros where it does not tell."""
    for pattern in _REFUSALS:
        found = pattern.search(message)
        if found:
            needed, unit, available, other_unit = found.groups()
            return int(float(needed) * _UNITS[unit]), int(float(available) * _UNITS[other_unit])
    return 0, 0

"""What compiling a program ahead of time tells: the JSON object that `nextflow_jax.compile` prints (a contract)."""

import importlib.metadata
from typing import Any

from nextflow_jax import __version__
from nextflow_jax.aot import hlo, roofline
from nextflow_jax.aot.collectives import CROSS_SLICE, Collective, largest, read_collectives, summarise
from nextflow_jax.aot.compiling import CompiledProgram
from nextflow_jax.aot.programs import PlannedProgram
from nextflow_jax.aot.topology import Topology

ATTENDED = 0.5
"""Share of an attention kernel's blocks that is taken to be computed: kernels skip what no range touches, which in a
row of one causal document is half; several documents in a row have less."""

LISTED = 12
"""Of the largest collectives."""

SIMULATED_MEMORY = {"memory": "as this CPU's compiler places it; peak: arguments, results and all temporaries together"}


def describe(
    program: PlannedProgram,
    compiled: CompiledProgram,
    topology: Topology,
    collectives: list[Collective],
    trace_and_lower_seconds: float,
) -> dict[str, Any]:
    """The object's keys; bytes are a device's, FLOPs and tokens those of all devices.

    Args:
      program: what was compiled.
      compiled: what came of it.
      topology: where.
      collectives: of the compiled program; empty where it was refused.
      trace_and_lower_seconds: that the program took in Python, before it was compiled.
    """
    memory, chip = compiled.memory, topology.chip
    fits = compiled.compiled is not None and memory.peak <= topology.hbm_limit
    work = _work(program, compiled, topology, collectives)
    estimate = roofline.estimate(work, chip, topology.shape)
    seconds = estimate.overlapped if compiled.compiled is not None else None
    return {
        "topology": topology.name,
        "slices": topology.slices,
        "chips": topology.chips,
        "simulated": chip.simulated,
        "program": program.name,
        "params": program.params,
        "tokens_per_step": program.tokens,
        "model_flops_per_step": program.model_flops,
        "hbm": {
            "arguments": memory.arguments,
            "temporaries": memory.temporaries,
            "peak": memory.peak,
            "limit": topology.hbm_limit,
            "headroom": topology.hbm_limit - memory.peak,
            "host": memory.host,
        },
        "collectives": summarise(collectives),
        "step_seconds_estimate": seconds,
        "mfu_bound": seconds and roofline.mfu_bound(program.model_flops, topology.chips, chip, seconds),
        "trace_and_lower_seconds": round(trace_and_lower_seconds, 1),
        "compile_seconds": round(compiled.seconds, 1),
        "compile_effort": compiled.effort,
        "fits": fits,
        "mesh": dict(program.mesh),
        "copies": program.copies,
        "settings": dict(program.settings),
        "roofline": None if seconds is None else _roofline(program, work, estimate, topology),
        "largest_collectives": largest(collectives, LISTED),
        "assumed": {**program.assumed, **(SIMULATED_MEMORY if chip.simulated else {})},
        "versions": versions(),
    }


def read_program(compiled: CompiledProgram) -> list[Collective]:
    """The collectives of a compiled program."""
    return [] if compiled.compiled is None else read_collectives(hlo.parse(compiled.compiled.as_text()))


def versions() -> dict[str, str | None]:
    """Of what decides the result."""
    found: dict[str, str | None] = {"nextflow_jax": __version__}
    for name in ("jax", "jaxlib", "libtpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _work(
    program: PlannedProgram, compiled: CompiledProgram, topology: Topology, collectives: list[Collective]
) -> roofline.Work:
    """A chip's."""
    devices = len(topology.devices) / topology.chips
    chips_of_copy = topology.chips / program.copies
    sent = {True: 0.0, False: 0.0}
    for one in collectives:
        sent[one.kind == CROSS_SLICE] += one.times * one.wire_bytes
    return roofline.Work(
        flops=(program.flops.products + ATTENDED * program.flops.kernels) / chips_of_copy,
        hbm_bytes=devices * compiled.memory.peak,
        ici_bytes=devices * sent[False],
        dcn_bytes=devices * sent[True],
    )


def _roofline(
    program: PlannedProgram, work: roofline.Work, estimate: roofline.Estimate, topology: Topology
) -> dict[str, Any]:
    """Seconds by resource and what they rest on, a chip's."""
    return {
        "seconds": {"compute": estimate.compute, "hbm": estimate.hbm, "ici": estimate.ici, "dcn": estimate.dcn},
        "bound": estimate.bound,
        "seconds_without_overlap": estimate.in_turn,
        "work": {
            "flops": work.flops,
            "products": program.flops.products,
            "kernels": program.flops.kernels,
            "hbm_bytes": work.hbm_bytes,
            "ici_bytes": work.ici_bytes,
            "dcn_bytes": work.dcn_bytes,
        },
        "rates": roofline.assumptions(topology.chip, topology.shape),
        "assumptions": (
            "every resource at its full rate and all of them at once; FLOPs are counted in the traced program, "
            f"rematerialisation included, {ATTENDED:.0%} of the blocks of attention kernels; HBM: what is there at the "
            "peak moves once, less than it does; ICI: every collective as a ring, over all links of a chip"
        ),
    }

"""What the devices of a compiled program send one another: kinds, how often, how many bytes; loops multiplied out.

Bytes are a device's, of one run of the program. `bytes` is what an operation is about: what an all-gather gives, what a
reduction takes. `wire_bytes` is what leaves a device when it is done as a ring: known for counts and sizes, a model for
the wire, for the TPU's own algorithms differ by size and topology.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

from nextflow_jax.aot import hlo

KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute"),
    "collective-broadcast",
)
GATHER_BY_SUM = "all-gather as all-reduce"
"""A gather that the TPU compiler does as a sum of arrays that are zero but for each device's part."""
CROSS_SLICE = "send"
"""What the TPU compiler makes of communication between slices."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """An operation of a program."""

    kind: str
    devices: int
    """That work on it together."""
    num_bytes: int
    """Each time."""
    times: int
    loops: tuple[str, ...]
    """The loops it is in, outermost first."""
    source: str
    """The operation of the traced function that it comes from, as far as known."""

    @property
    def wire_bytes(self) -> float:
        """Bytes that leave a device, each time."""
        share = (self.devices - 1) / self.devices if self.devices else 1.0
        factor = 2.0 if self.kind in ("all-reduce", GATHER_BY_SUM) else 1.0
        return self.num_bytes * (1.0 if self.kind in ("collective-permute", CROSS_SLICE) else factor * share)


def read_collectives(program: hlo.Program) -> list[Collective]:
    """Every collective operation that a run executes, but those of one device with itself."""
    found, seen = [], set()
    for step in hlo.executed(program):
        instruction = step.instruction
        kind = instruction.opcode.removesuffix("-start")
        if kind not in (*KINDS, CROSS_SLICE):
            continue
        # One operation cut into steps that stand in several fusions of a loop's body: they share channel and chain.
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        if "chain_id=" in instruction.attributes and channel:
            if (kind, channel[1], step.loops) in seen:
                continue
            seen.add((kind, channel[1], step.loops))
        found.append(_read(program, step, kind))
    return [one for one in found if one.devices != 1]


def summarise(collectives: Iterable[Collective]) -> dict[str, dict[str, int]]:
    """Kind -> count, bytes and wire_bytes of a run."""
    totals: dict[str, dict[str, int]] = {}
    for one in collectives:
        total = totals.setdefault(one.kind, {"count": 0, "bytes": 0, "wire_bytes": 0})
        total["count"] += one.times
        total["bytes"] += one.times * one.num_bytes
        total["wire_bytes"] += round(one.times * one.wire_bytes)
    return dict(sorted(totals.items()))


def largest(collectives: Iterable[Collective], count: int) -> list[dict[str, Any]]:
    """The `count` operations that are about most bytes in a run; those that differ in name alone are one."""
    times: collections.Counter[tuple[Any, ...]] = collections.Counter()
    for one in collectives:
        times[(one.kind, one.devices, one.num_bytes, one.loops, one.source)] += one.times
    ordered = sorted(times.items(), key=lambda item: -item[0][2] * item[1])[:count]
    return [
        {"kind": kind, "devices": devices, "count": times, "bytes_each": size, "loops": list(loops), "source": source}
        for (kind, devices, size, loops, source), times in ordered
    ]


def group_size(instruction: hlo.Instruction, devices: int) -> int:
    """Devices that work on an operation together; the text has three ways to say it, and none for all of them."""
    text = instruction.attributes
    axes = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(.*?\))? \{(.*?)\}", text)
    if axes:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes[1])}
        return math.prod(sizes[name] for name in re.findall(r"'([^']+)'", axes[2]))
    tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]", text)
    if tiled:
        return int(tiled[2])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
    return len(listed[1].split(",")) if listed else devices


def _read(program: hlo.Program, step: hlo.Executed, kind: str) -> Collective:
    instruction = step.instruction
    devices = group_size(instruction, program.devices)
    operands = {one.name: one for one in program.computations[step.computation]}
    taken = sum(operands[name].num_bytes for name in instruction.operands if name in operands)
    if kind == CROSS_SLICE:
        shapes = hlo.array_shapes(instruction.shape)
        taken, devices = shapes[0][1] if shapes else 0, 0
    if kind == "all-reduce" and "all-reduce-scatter" in step.computation:
        kind = "reduce-scatter"
    elif kind == "all-reduce" and all(_is_part(program, operands.get(name)) for name in instruction.operands):
        kind = GATHER_BY_SUM
    source = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return Collective(
        kind=kind,
        devices=devices,
        num_bytes=taken * devices if kind == "all-gather" else taken,
        times=step.times,
        loops=step.loops,
        source=source[1] if source else "",
    )


def _is_part(program: hlo.Program, instruction: hlo.Instruction | None) -> bool:
    """Whether an array is a part put into a larger one."""
    if instruction is None:
        return False
    if instruction.opcode == "fusion":
        called = re.search(r"calls=%?([\w.\-]+)", instruction.attributes)
        return bool(called) and _is_part(program, program.computations[called[1]][-1])
    return instruction.opcode == "dynamic-update-slice"

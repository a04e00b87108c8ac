"""Reads the text of a compiled program (XLA's HLO): its computations, their instructions, how often each is executed.

XLA's own cost analysis counts the body of a loop once; here loops are multiplied out. The format has no specification:
what is read here is what `jax.stages.Compiled.as_text()` gives for CPUs and TPUs (jaxlib 0.10, libtpu 0.0.42).
"""

import dataclasses
import math
import re
from collections.abc import Iterator

ITEM_BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
    "c128": 16,
}
"""Bytes of an element; types that are missing (tokens, opaque) hold no data."""

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_RESULT = re.compile(r"  (ROOT )?%?([\w.\-]+) = ")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation|called_computations)=\{?%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count[\\":{ ]*n[\\": ]*(\d+)')

UNKNOWN_TRIPS = 0
"""In place of the number of iterations of a loop that the text does not tell."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line (kernels with metadata have several)."""

    name: str
    shape: str
    """The text of its result's type; a tuple in parentheses."""
    opcode: str
    operands: tuple[str, ...]
    """Names of instructions of the same computation."""
    arguments: str
    """What stands between the parentheses after the opcode."""
    attributes: str
    """What stands after them."""
    is_root: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of the result, all parts of a tuple together."""
        return shape_bytes(self.shape)


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program: of one device, the same for all."""

    computations: dict[str, tuple[Instruction, ...]]
    entry: str
    devices: int
    """How many run it together."""


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction where it stands, and how often a run of the program executes it."""

    instruction: Instruction
    computation: str
    times: int
    loops: tuple[str, ...]
    """The loops around it, outermost first: "while x28"; "while x?" counts once."""


def shape_bytes(shape: str) -> int:
    """Bytes of the arrays in the text of a type, such as "(bf16[8,128]{1,0}, u32[])"."""
    return sum(size for _, size in array_shapes(shape))


def array_shapes(shape: str) -> list[tuple[tuple[int, ...], int]]:
    """(dimensions, bytes) of every array in the text of a type."""
    found = []
    for dtype, text in _SHAPE.findall(shape):
        if dtype in ITEM_BYTES:
            dimensions = tuple(int(size.removeprefix("<=")) for size in text.split(",") if size)
            found.append((dimensions, math.prod(dimensions) * ITEM_BYTES[dtype]))
    return found


def parse(text: str) -> Program:
    """The program of `compiled.as_text()`.

    Raises:
      ValueError: no entry computation; this is no HLO text.
    """
    computations: dict[str, list[str]] = {}
    current = entry = None
    for line in text.splitlines():
        if current is None:
            header = _HEADER.match(line)
            if header:
                current = header[2]
                computations[current] = []
                entry = current if header[1] else entry
        elif line == "}" or line.startswith("}, execution_thread"):
            current = None
        elif _RESULT.match(line):
            computations[current].append(line)
        elif computations[current]:  # metadata of kernels goes over several lines
            computations[current][-1] += " " + line
    if entry is None:
        raise ValueError("no ENTRY computation: not the text of a compiled program")
    devices = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    parsed = {name: tuple(map(_parse_instruction, lines)) for name, lines in computations.items()}
    return Program(parsed, entry, int(devices[1]) if devices else 1)


def executed(program: Program) -> Iterator[Executed]:
    """Every instruction that a run executes, those of fusions included; of a condition, those of its longest branch."""
    yield from _walk(program, program.entry, 1, ())


def trip_count(program: Program, loop: Instruction, computation: str) -> int:
    """Iterations of a `while`, or UNKNOWN_TRIPS.

    The compiler's note where there is one (CPU); else the loop is taken to count up by one while below a constant, as
    `lax.scan`'s do, from the constant that the counter starts with, or 0 where that is not told.
    """
    noted = _TRIPS.search(loop.attributes)
    if noted:
        return int(noted[1])
    condition = _by_name(program, _attribute(loop, "condition"))
    root = next(one for one in condition.values() if one.is_root)
    if root.opcode == "fusion":  # the comparison alone, wrapped
        inner = _by_name(program, _attribute(root, "calls"))
        comparison = next(one for one in inner.values() if one.is_root)
        sides = [condition.get(name) for name in root.operands]
    else:
        comparison, sides = root, [condition.get(name) for name in root.operands]
    if comparison.opcode != "compare" or "direction=LT" not in comparison.attributes or len(sides) != 2:
        return UNKNOWN_TRIPS
    end = _constant(sides[1])
    if end is None:
        return UNKNOWN_TRIPS
    return max(0, end - _start(program, loop, computation, sides[0]))


def _walk(program: Program, name: str, times: int, loops: tuple[str, ...]) -> Iterator[Executed]:
    for instruction in program.computations.get(name, ()):
        yield Executed(instruction, name, times, loops)
        if instruction.opcode == "while":
            trips = trip_count(program, instruction, name)
            label = f"while x{trips or '?'}"
            body = _attribute(instruction, "body")
            yield from _walk(program, body, times * max(1, trips), (*loops, label))
            continue
        called = _called(instruction)
        if instruction.opcode == "conditional":
            called = [max(called, key=lambda branch: len(program.computations.get(branch, ())))]
        for computation in called:
            yield from _walk(program, computation, times, loops)


def _called(instruction: Instruction) -> list[str]:
    """Computations that an instruction runs once; reducers (`to_apply` of a reduction) hold nothing of interest."""
    if instruction.opcode not in ("fusion", "call", "conditional", "custom-call") and not instruction.opcode.endswith(
        "-start"
    ):
        return []
    names = _CALLED.findall(instruction.attributes)
    for group in _BRANCHES.findall(instruction.attributes):
        names += [name.strip(" %") for name in group.split(",")]
    return names


def _start(program: Program, loop: Instruction, computation: str, counter: Instruction | None) -> int:
    """What a loop's counter starts with; 0 where it cannot be told."""
    if counter is None or counter.opcode != "get-tuple-element":
        return 0
    index = int(re.search(r"index=(\d+)", counter.attributes)[1])
    around = _by_name(program, computation)
    carried = around.get(loop.operands[0]) if loop.operands else None
    if carried is None or carried.opcode != "tuple" or index >= len(carried.operands):
        return 0
    value = around.get(carried.operands[index])
    while value is not None and value.opcode in ("copy", "bitcast") and value.operands:
        value = around.get(value.operands[0])
    return _constant(value) or 0


def _constant(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant":
        return None
    return int(instruction.arguments) if re.fullmatch(r"-?\d+", instruction.arguments) else None


def _by_name(program: Program, computation: str) -> dict[str, Instruction]:
    return {one.name: one for one in program.computations[computation]}


def _attribute(instruction: Instruction, name: str) -> str:
    return re.search(rf"\b{name}=%?([\w.\-]+)", instruction.attributes)[1]


def _parse_instruction(line: str) -> Instruction:
    result = _RESULT.match(line)
    rest = line[result.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    arguments = rest[len(opcode) + 1 : close]
    return Instruction(
        name=result[2],
        shape=shape,
        opcode=opcode,
        operands=tuple(_NAME.findall(arguments)),
        arguments=arguments,
        attributes=rest[close + 1 :],
        is_root=bool(result[1]),
    )


def _closing(text: str, start: int = 0) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.start()
    return len(text)

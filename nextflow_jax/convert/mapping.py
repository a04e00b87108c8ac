"""Published names to ours and back: one strict, invertible table a model.

    ROWS = (
        Row("embed.weight", "embedding"),
        Row("layers.{layer}.mlp.fc1.weight", "blocks/mlp/up/kernel", LINEAR),         # stacked: our blocks are scanned
        Row("down.{level}.conv.weight", "level_{level}_conv/kernel", CONV),           # substituted
        Row("attn.qkv.weight", ("query/kernel", "key/kernel", "value/kernel"), split(3).then(HEADS_IN)),
    )
    tree = read(ROWS, arrays, expected, "model.safetensors", ignore=("*.position_ids",))
    arrays = write(ROWS, tree)                                                        # equal to what was read

`{name}` stands for an integer. A field of the source that the target lacks is stacked on a leading axis (several: in
the order they appear in the source); a field in both is substituted. What must be there follows from the expected
tree: every array of it is made exactly once, of arrays that are used exactly once. A row whose target the expected
tree lacks asks for nothing, so that one table serves a model with and without its optional parts.

Arrays are asked for one at a time and in the order of the table: a mapping that loads lazily is never whole in memory.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from nextflow_jax.convert.flat import flatten_variables, unflatten_variables
from nextflow_jax.convert.transforms import SAME, Transform
from nextflow_jax.errors import UserError

NAMES_SHOWN = 12
"""Of each kind of fault; a wrong file would name thousands."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: which of their arrays make which of ours, and how."""

    source: str | tuple[str, ...]
    target: str | tuple[str, ...]
    transform: Transform = SAME

    @property
    def sources(self) -> tuple[str, ...]:
        """Their patterns, as a tuple."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def targets(self) -> tuple[str, ...]:
        """Our patterns, as a tuple."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def stacked(self) -> tuple[str, ...]:
        """The fields that become leading axes."""
        return tuple(field for field in _fields(self.sources[0]) if field not in _fields(self.targets[0]))


class _Use(NamedTuple):
    """A row with the fields of its targets bound: the unit of work."""

    row: Row
    fields: dict[str, int]
    targets: tuple[str, ...]
    counts: tuple[int, ...]
    """Lengths of the stacked axes."""

    def pieces(self) -> Iterator[tuple[tuple[int, ...], tuple[str, ...]]]:
        """(position on the stacked axes, their names) of everything that is stacked."""
        for index in np.ndindex(*self.counts):
            fields = self.fields | dict(zip(self.row.stacked, index))
            yield index, tuple(source.format(**fields) for source in self.row.sources)


class _Faults:
    """Everything that is wrong, by kind, for one message."""

    def __init__(self) -> None:
        self.kinds: dict[str, list[str]] = {}

    def add(self, kind: str, what: str) -> None:
        self.kinds.setdefault(kind, []).append(what)

    def raise_any(self, source: str) -> None:
        if not self.kinds:
            return
        parts = []
        for kind, items in self.kinds.items():
            more = f" and {len(items) - NAMES_SHOWN} more" if len(items) > NAMES_SHOWN else ""
            parts.append(f"{kind} ({len(items)}): " + ", ".join(items[:NAMES_SHOWN]) + more)
        raise UserError(f"{source} does not fit the name table and the configuration; " + "; ".join(parts))


def read(
    rows: Sequence[Row],
    arrays: Mapping[str, Any],
    expected: Mapping[str, Any],
    source: str,
    ignore: Sequence[str] = (),
) -> dict[str, Any]:
    """The published arrays as a tree of exactly the structure, shapes and dtypes of `expected`.

    Floating-point arrays may be narrower than expected (bfloat16 into float32), which changes no value.

    Args:
      rows: the table.
      arrays: by published name.
      expected: a nested tree of arrays or `jax.ShapeDtypeStruct`s, boxed or not.
      source: where `arrays` came from; begins the message.
      ignore: patterns of published names that are left out on purpose; "*" stands for anything. Each must match one.

    Returns:
      The nested tree, NumPy arrays.

    Raises:
      UserError: all unmapped, missing, duplicate, mis-shaped and mistyped arrays in one message.
    """
    return unflatten_variables(_filled(rows, arrays, expected, source, ignore, np.empty))


def check(
    rows: Sequence[Row],
    arrays: Mapping[str, Any],
    expected: Mapping[str, Any],
    source: str,
    ignore: Sequence[str] = (),
) -> None:
    """Raises what `read` would raise, and makes no array: broadcast stand-ins of any size take no memory."""
    _filled(rows, arrays, expected, source, ignore, lambda shape, dtype: np.broadcast_to(np.zeros((), dtype), shape))


def _filled(
    rows: Sequence[Row],
    arrays: Mapping[str, Any],
    expected: Mapping[str, Any],
    source: str,
    ignore: Sequence[str],
    make: Callable[[tuple[int, ...], Any], np.ndarray],
) -> dict[str, np.ndarray]:
    """The flat tree, of arrays that `make` gives; those that cannot be written are compared with and left alone."""
    wanted, faults = flatten_variables(expected), _Faults()
    uses = _uses(rows, wanted, faults)
    _check_names(uses, arrays, ignore, faults)
    flat: dict[str, np.ndarray] = {}
    for use in uses:
        for target in use.targets:
            flat[target] = make(wanted[target].shape, wanted[target].dtype)
        shapes = tuple(flat[target].shape[len(use.counts) :] for target in use.targets)
        for index, names in use.pieces():
            if all(name in arrays for name in names):
                theirs = tuple(np.asarray(arrays[name]) for name in names)
                for target, piece in zip(use.targets, _pieces(use, names, theirs, shapes, faults)):
                    _place(flat[target], index, piece, f"{' + '.join(names)} for {target}", faults)
    faults.raise_any(source)
    return flat


class Piece(NamedTuple):
    """One array of ours, or the entry of one that is stacked, as it comes out of a row."""

    target: str
    """Flat name of our array."""
    index: tuple[int, ...]
    """Where it belongs on the stacked axes; () when it is the whole array."""
    array: Any
    """A view of the published array where the transform allows it, in the published dtype."""


def stream(
    rows: Sequence[Row],
    arrays: Mapping[str, Any],
    expected: Mapping[str, Any],
    source: str,
    ignore: Sequence[str] = (),
) -> Iterator[Piece]:
    """What `read` reads, one published array after another and nothing kept; all is checked before the first.

    Args and raises: as `read`.
    """
    check(rows, arrays, expected, source, ignore)
    return _streamed(rows, arrays, flatten_variables(expected))


def _streamed(rows: Sequence[Row], arrays: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[Piece]:
    for use in _uses(rows, wanted, _Faults()):
        shapes = tuple(wanted[target].shape[len(use.counts) :] for target in use.targets)
        for index, names in use.pieces():
            made = use.row.transform.to_ours(tuple(np.asarray(arrays[name]) for name in names), shapes)
            for target, array in zip(use.targets, made, strict=True):
                yield Piece(target, index, array)


def write(rows: Sequence[Row], tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The exact inverse of `read`: the tree's arrays by their published names, contiguous.

    Raises:
      UserError: an array of the tree that no row, or more than one, covers.
    """
    return {name: np.ascontiguousarray(array) for name, array in write_each(rows, tree)}


def write_each(rows: Sequence[Row], tree: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """(published name, array) one after another, views where the transforms allow it; see `write`."""
    flat, faults = flatten_variables(tree), _Faults()
    uses = _uses(rows, flat, faults)
    faults.raise_any("the tree")
    for use in uses:
        ours = [np.asarray(flat[target]) for target in use.targets]
        for index, names in use.pieces():
            theirs = use.row.transform.to_theirs(tuple(array[index] for array in ours))
            yield from zip(names, theirs, strict=True)


def matches(pattern: str, name: str) -> dict[str, int] | None:
    """The integers that the fields of `pattern` take in `name`, or None where it does not match."""
    found = _expression(pattern).fullmatch(name)
    return None if found is None else {field: int(value) for field, value in found.groupdict().items()}


@functools.cache
def _expression(pattern: str) -> re.Pattern:
    pieces = re.split(r"\{(\w+)\}", pattern)
    literal = (re.escape(piece).replace(r"\*", ".*") for piece in pieces[::2])
    fields = [rf"(?P<{field}>0|[1-9]\d*)" for field in pieces[1::2]] + [""]
    return re.compile("".join(text + field for text, field in zip(literal, fields)))


def _fields(pattern: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", pattern)


def _uses(rows: Sequence[Row], wanted: Mapping[str, Any], faults: _Faults) -> list[_Use]:
    """Every row bound to every array of ours it makes; each array must be made once."""
    uses: list[_Use] = []
    makers: dict[str, list[Row]] = {name: [] for name in wanted}
    for row in rows:
        first = row.targets[0]
        # A target without fields is one name: large tables of such rows need no search.
        bound = (matches(first, name) for name in (wanted if _fields(first) else {first} & wanted.keys()))
        for fields in (fields for fields in bound if fields is not None):
            targets = tuple(target.format(**fields) for target in row.targets)
            counts = tuple(wanted[targets[0]].shape[: len(row.stacked)])
            absent = [target for target in targets if target not in wanted]
            for target in absent:
                faults.add("not in the configuration", f"{target}, made together with {targets[0]}")
            if not absent:
                uses.append(_Use(row, fields, targets, counts))
                for target in targets:
                    makers[target].append(row)
    for name, found in makers.items():
        if not found:
            faults.add("in no row of the table", name)
        elif len(found) > 1:
            faults.add("duplicate", f"{name} is made by {' and '.join(str(row.source) for row in found)}")
    return uses


def _check_names(uses: Sequence[_Use], arrays: Mapping[str, Any], ignore: Sequence[str], faults: _Faults) -> None:
    """Every published name used once or ignored, every needed one there."""
    used: dict[str, str] = {}
    for use in uses:
        for _, names in use.pieces():
            for name in names:
                if name in used:
                    faults.add("duplicate", f"{name} makes {used[name]} and {use.targets[0]}")
                elif name not in arrays:
                    faults.add("missing", f"{name} for {use.targets[0]}")
                used[name] = use.targets[0]
    left = [name for name in arrays if name not in used]
    for pattern in ignore:
        if not any(matches(pattern, name) is not None for name in left):
            faults.add("ignored but absent", pattern)
    for name in left:
        if all(matches(pattern, name) is None for pattern in ignore):
            faults.add("unmapped", f"{name} {_describe(arrays[name])}")


def _pieces(use: _Use, names: tuple[str, ...], theirs: tuple, shapes: tuple, faults: _Faults) -> tuple:
    """Our arrays of one application of the transform; none, and a fault, where the shapes do not allow it."""
    try:
        return use.row.transform.to_ours(theirs, shapes)
    except ValueError as error:
        described = " + ".join(f"{name} {_describe(array)}" for name, array in zip(names, theirs))
        faults.add("mis-shaped", f"{described} for {use.targets[0]} {list(shapes[0])} ({error})")
        return ()


def _place(whole: np.ndarray, index: tuple[int, ...], piece: Any, name: str, faults: _Faults) -> None:
    if piece.shape != whole.shape[len(index) :]:
        faults.add("mis-shaped", f"{name} gives {list(piece.shape)}, not {list(whole.shape[len(index) :])}")
    elif not _widens(piece.dtype, whole.dtype):
        faults.add("mistyped", f"{name} is {piece.dtype}, not {whole.dtype}")
    elif whole.flags.writeable:
        whole[index] = piece


def _widens(narrow: Any, wide: Any) -> bool:
    """Whether every value of dtype `narrow` is one of `wide`, kinds (floating, integer) apart."""
    both_floating = jnp.issubdtype(narrow, jnp.floating) and jnp.issubdtype(wide, jnp.floating)
    return narrow == wide or bool(both_floating and jnp.promote_types(narrow, wide) == wide)


def _describe(array: Any) -> str:
    return f"{np.dtype(array.dtype).name}{list(array.shape)}"

"""Configurations: frozen dataclasses hold the defaults, ConfigDicts carry an experiment's edits, one door between.

An experiment file defines `get_config(variant) -> ConfigDict`. It starts from `to_config_dict(SomeDataclass())`, so
every default is written once, in the dataclass. `from_config_dict` is the only way back: it refuses unknown keys,
missing keys and wrong types, all at once, naming each key in full and the nearest valid one. Dataclasses may define
`faults()`, yielding the rules they break as `Fault`s; `preflight` collects them over the whole tree.
"""

import ast
import dataclasses
import difflib
import importlib.util
import json
import pathlib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from nextflow_jax.errors import UserError

if TYPE_CHECKING:
    # Imported where it is used: sampling from a bundle reads configurations without ml_collections installed.
    import ml_collections

ConfigT = TypeVar("ConfigT")


@dataclasses.dataclass(frozen=True)
class Fault:
    """One broken rule of a configuration: the field, its value, the rule and the way to satisfy it."""

    field: str
    value: Any
    rule: str
    fix: str

    def __str__(self) -> str:
        return f"{self.field} = {self.value!r}: {self.rule}; {self.fix}"


def to_config_dict(config: Any) -> "ml_collections.ConfigDict":
    """The locked ConfigDict with the fields of a (nested) dataclass instance."""
    import ml_collections

    fields = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, tuple):
            value = tuple(to_config_dict(item) if dataclasses.is_dataclass(item) else item for item in value)
        fields[field.name] = to_config_dict(value) if dataclasses.is_dataclass(value) else value
    return ml_collections.ConfigDict(fields).lock()


def to_plain_dict(config: Any) -> dict[str, Any]:
    """A JSON-ready dictionary of a dataclass instance (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_config_dict(cls: type[ConfigT], values: Any, prefix: str = "config", fill: bool = False) -> ConfigT:
    """Turns a ConfigDict, or a plain dictionary read from JSON, into the frozen dataclass `cls`.

    Args:
      cls: a dataclass whose fields are bool, int, float, str, tuples of these (nested), or dataclasses.
      values: a ConfigDict or dictionary with exactly the fields of `cls`.
      prefix: the full name of `values`, used in messages.
      fill: fields that are missing take their defaults. Only for what a run saved, which may be older than the fields.

    Raises:
      UserError: names every unknown, missing or mistyped key in one message.
    """
    faults: list[str] = []
    result = _build(cls, values, prefix, faults, fill)
    if faults:
        raise UserError("; ".join(faults))
    return result


def preflight(config: Any, prefix: str = "config", extra: Sequence[Fault] = ()) -> None:
    """Raises one UserError with all broken rules of a dataclass tree and those in `extra`; none: returns."""
    faults = [*_walk_faults(config, prefix), *extra]
    if faults:
        raise UserError("; ".join(str(fault) for fault in faults))


def pattern_faults(field: str, patterns: Sequence[str]) -> Iterator[Fault]:
    """A fault for each of a field's patterns that is no regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            yield Fault(field, pattern, f"is not a regular expression ({error})", "correct the pattern")


def load_experiment(spec: str, overrides: Sequence[str] = ()) -> "ml_collections.ConfigDict":
    """Runs an experiment file's `get_config` and applies command-line overrides.

    Args:
      spec: `path/to/file.py` or `path/to/file.py:variant`; the variant is passed to `get_config`.
      overrides: `a.b=value` strings, `a.0.b=value` for the first of a tuple of groups; values are Python literals,
        bare words count as strings.

    Raises:
      UserError: no such file, no get_config, an unknown variant, an unknown key or an unreadable value.
    """
    path, _, variant = spec.partition(":")
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"--config {path}: no such file; give an experiment, e.g. experiments/openmoji/quickstart.py")
    module_spec = importlib.util.spec_from_file_location(f"nextflow_experiment_{file.stem}", file)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config {path}: defines no get_config(variant); see WORKSPACE.md, 'add an experiment'")
    config = module.get_config(variant)
    for override in overrides:
        _apply_override(config, override)
    return config


def read_variant(
    variant: str, kinds: Sequence[str], switches: Sequence[str] = ("smoke",)
) -> tuple[str, frozenset[str]]:
    """Reads an experiment's variant: at most one of `kinds` and any of `switches`, separated by commas.

    Args:
      variant: the part after the colon, e.g. "tokenizer,smoke"; empty means the last of `kinds`.
      kinds: what the file can train, in the order of its stages.
      switches: what may be added to each.

    Returns:
      (kind, switches named).

    Raises:
      UserError: a word that is neither, or two kinds.
    """
    words = [word for word in variant.split(",") if word]
    known = (*kinds, *switches)
    for word in words:
        if word not in known:
            raise UserError(f"--config ...:{variant}: variant {word!r} is not known; {nearest(word, known)}")
    chosen = [word for word in words if word in kinds]
    if len(chosen) > 1:
        raise UserError(f"--config ...:{variant}: names {' and '.join(chosen)}; an experiment is one of them")
    return (chosen or list(kinds[-1:]))[0], frozenset(words) & frozenset(switches)


def nearest(name: str, choices: Sequence[str]) -> str:
    """A "did you mean" clause: the closest of `choices`, or all of them when none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(choices))}"


def choose(what: str, name: str, choices: Mapping[str, Any]) -> Any:
    """`choices[name]`, or a UserError that names `what`, the value and the nearest choice."""
    if name not in choices:
        raise UserError(f"{what} {name!r} is not known; {nearest(name, list(choices))}")
    return choices[name]


def _apply_override(config: "ml_collections.ConfigDict", override: str) -> None:
    import ml_collections

    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"--config.{key}: no value; write --config.{key}=VALUE")
    *parents, leaf = key.split(".")
    node, walked = config, "config"
    for name in [*parents, leaf]:
        if isinstance(node, tuple) and name.isdecimal() and int(name) < len(node) and name is not leaf:
            node, walked = node[int(name)], f"{walked}.{name}"
            continue
        if not isinstance(node, ml_collections.ConfigDict) or name not in node:
            choices = list(node.keys()) if isinstance(node, ml_collections.ConfigDict) else []
            if isinstance(node, tuple):
                choices = [str(number) for number in range(len(node))]
            raise UserError(f"{walked}.{name} is not a configuration key; {nearest(name, choices)}")
        parent, node, walked = node, node[name], f"{walked}.{name}"
    parent[leaf] = _read_value(walked, text, node)


def _read_value(name: str, text: str, current: Any) -> Any:
    import ml_collections

    if isinstance(current, ml_collections.ConfigDict):
        raise UserError(f"{name} is a group of keys ({', '.join(current.keys())}); set one of them")
    if isinstance(current, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(current, tuple) and isinstance(value, list):
        value = tuple(value)
    if type(value) is not type(current):
        raise UserError(f"{name} = {text}: expects {type(current).__name__} like {current!r}")
    return value


def _build(cls: type, values: Any, prefix: str, faults: list[str], fill: bool) -> Any:
    hints = typing.get_type_hints(cls)
    optional = {field.name for field in dataclasses.fields(cls) if fill and _has_default(field)}
    names = [field.name for field in dataclasses.fields(cls)]
    if not hasattr(values, "keys"):
        faults.append(f"{prefix} = {values!r}: expects a group of keys ({', '.join(names)})")
        return None
    for key in values.keys():
        if key not in names:
            faults.append(f"{prefix}.{key} is not a configuration key; {nearest(key, names)}")
    arguments = {}
    for name in names:
        if name in values:
            arguments[name] = _convert(hints[name], values[name], f"{prefix}.{name}", faults, fill)
        elif name not in optional:
            faults.append(f"{prefix}.{name} is missing")
    return None if faults else cls(**arguments)


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _convert(hint: Any, value: Any, name: str, faults: list[str], fill: bool) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, name, faults, fill)
    origin = typing.get_origin(hint)
    if origin is tuple and isinstance(value, list | tuple):
        return _convert_tuple(typing.get_args(hint), value, name, faults, fill)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = origin or hint
    if isinstance(expected, type) and not isinstance(hint, types.UnionType):
        if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
            faults.append(f"{name} = {value!r}: expects {getattr(hint, '__name__', hint)}")
    return value


def _convert_tuple(items: tuple, value: Sequence[Any], name: str, faults: list[str], fill: bool) -> tuple:
    hints = [items[0]] * len(value) if len(items) == 2 and items[1] is Ellipsis else list(items)
    if len(hints) != len(value):
        faults.append(f"{name} = {value!r}: expects {len(hints)} entries")
        return ()
    return tuple(_convert(hint, item, f"{name}[{i}]", faults, fill) for i, (hint, item) in enumerate(zip(hints, value)))


def _walk_faults(config: Any, prefix: str) -> Iterator[Fault]:
    if hasattr(config, "faults"):
        for fault in config.faults():
            yield dataclasses.replace(fault, field=f"{prefix}.{fault.field}")
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        items = enumerate(value) if isinstance(value, tuple) else ()
        groups = [(field.name, value), *((f"{field.name}.{place}", item) for place, item in items)]
        for name, group in groups:
            if dataclasses.is_dataclass(group):
                yield from _walk_faults(group, f"{prefix}.{name}")

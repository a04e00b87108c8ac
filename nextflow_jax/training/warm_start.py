"""Warm start: a fresh run takes its weights from another run's checkpoint, strictly, with every gap named.

Or from published weights, which published_start.py reads.

Names of arrays are "collection/path", e.g. "params/pixel_encoder/stem/kernel" or "codebook/quantizer/embedding". Every
array of the new run must be in the source with the same shape and dtype, unless a pattern of the configuration says
otherwise; every array of the source must be used, or a pattern says that it is not. All misfits come in one message.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Int

from nextflow_jax.config import Fault, nearest, pattern_faults
from nextflow_jax.convert.qwen2_5_config import CONFIG_FILE
from nextflow_jax.errors import UserError
from nextflow_jax.folders import URL_FIX, url_rule
from nextflow_jax.training.checkpoint import Restored, checkpoint_steps, read_meta, restore_variables

INIT_FROM = "init_from"
"""The fingerprint that says which checkpoint a run's weights came from."""

NEWEST = -1

DECODER = "decoder"
"""The kind of run that published text models start."""

PATTERNS = ("fresh", "drop", "pixel_half", "grow")
"""Fields with regular expressions."""

_SHOWN = 8
"""Misfits of one kind that a message lists."""


@dataclasses.dataclass(frozen=True)
class InitFromConfig:
    """Where weights come from; patterns are regular expressions searched in "collection/path" names."""

    workdir: str = ""
    """--workdir of the source run; empty = no warm start. Its moving average is taken where it kept one."""
    weights: str = ""
    """A decoder's other source: the folder of a Qwen2, Qwen2.5 or Qwen2.5-VL checkpoint in Hugging Face's layout, whose
    vocabulary is grown; or one that `export --format hf` wrote. Not together with workdir."""
    step: int = NEWEST
    """Which checkpoint of workdir; -1 = the newest."""
    fresh: tuple[str, ...] = ()
    """Our arrays that keep their own initial values; arrays of the source with such names are not used."""
    drop: tuple[str, ...] = ()
    """Arrays of the source that are not used."""
    pixel_half: tuple[str, ...] = ()
    """Our codebook arrays of which the source has the pixel half alone (a single codebook before a dual one). It
    becomes their last columns; the semantic half starts at zero, so that at first pixels alone choose the codes, whose
    semantic halves then follow what chose them."""
    grow: tuple[str, ...] = ()
    """Our arrays that are larger than the source's, e.g. "embedding/scales" of a stage with more scales, or
    "embedding/tokens" and "head/" of one with more text ids: what the source has comes first in every dimension (rows
    of specials and codes behind the text ids, where they belong), the rest keeps its initial values."""

    def faults(self) -> Iterator[Fault]:
        """The rules these settings break."""
        if self.weights and self.workdir:
            rule = f"a run starts from one source, and workdir is {self.workdir!r}"
            yield Fault("weights", self.weights, rule, "leave one of the two empty")
        for name in ("workdir", "weights"):
            rule = url_rule(getattr(self, name))
            if rule:
                yield Fault(name, getattr(self, name), rule, URL_FIX)
        if self.step < NEWEST:
            yield Fault("step", self.step, "is no step", "use -1 for the newest checkpoint")
        for name in PATTERNS:
            yield from pattern_faults(name, getattr(self, name))
            if getattr(self, name) and not self.workdir:
                yield Fault(
                    name, getattr(self, name), "says what to do with a source", "set workdir, or leave it empty"
                )

    def input_faults(self, kinds: Sequence[str]) -> Iterator[Fault]:
        """What is wrong with the source, as far as its names tell; `kinds` are those that fit."""
        if self.weights and DECODER not in kinds:
            rule = f"published text models are weights of a {DECODER}"
            yield Fault("weights", self.weights, rule, "leave it empty")
        elif self.weights and not (pathlib.Path(self.weights) / CONFIG_FILE).is_file():
            fix = f"give the folder of a Hugging Face checkpoint, with its {CONFIG_FILE}"
            yield Fault("weights", self.weights, f"has no {CONFIG_FILE}", fix)
        if not self.workdir:
            return
        steps = checkpoint_steps(self.workdir)
        if not steps:
            yield Fault("workdir", self.workdir, "has no checkpoint", "train the source there first")
        elif self.step not in (NEWEST, *steps):
            yield Fault("step", self.step, f"{self.workdir} has checkpoints {steps}", "use one of these, or -1")
        else:
            kind = read_meta(self.workdir, self._wanted)["config"]["kind"]
            if kind not in kinds:
                rule = f"holds a run of kind {kind!r}"
                yield Fault("workdir", self.workdir, rule, f"give one of kind {' or '.join(kinds)}")

    def grows(self, name: str) -> bool:
        """Whether our array of this name grows from the source's."""
        return _matches(self.grow, name) and not _matches(self.fresh, name)

    @property
    def _wanted(self) -> int | None:
        return None if self.step == NEWEST else self.step


class MovedEntries(NamedTuple):
    """Where the entries of a source's array go in a grown one; those behind the last that is named are not used."""

    axis: int
    places: Int[np.ndarray, "entries"]
    """Entry i of the source along the axis -> entry of the grown array."""


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Weights that are ready to replace those of a fresh run."""

    arrays: Mapping[str, np.ndarray]
    """By "collection/path"; arrays that stay fresh are not here."""
    origin: str
    """Which checkpoint they are of."""
    grown: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Likewise, of arrays of which they are a part: the first in every dimension, but for `moved`."""
    moved: Mapping[str, MovedEntries] = dataclasses.field(default_factory=dict)
    """Of some that are grown: where their entries go."""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.arrays) + len(self.grown)

    @property
    def given(self) -> frozenset[str]:
        """Arrays that need not be made before: none, for they replace fresh ones."""
        return frozenset()

    def apply(self, variables: Any) -> Any:
        """The variables with the arrays put in their places."""
        flat = _flat(variables)
        grown = {name: _with_part(flat[name], part, self.moved.get(name)) for name, part in self.grown.items()}
        return traverse_util.unflatten_dict({**flat, **self.arrays, **grown}, sep="/")


def load_warm_start(
    config: InitFromConfig, abstract: Any, moved: Mapping[str, MovedEntries] = MappingProxyType({})
) -> WarmStart:
    """Reads the source and fits it to the new run's variables.

    Args:
      config: with a workdir.
      abstract: the new run's variables by collection, unboxed, as shapes.
      moved: arrays whose entries mean something else here than at the same place there; `grow` must name them.

    Raises:
      UserError: no such checkpoint; or everything that is missing, unused, mis-shaped or mistyped, and every pattern
        that matches nothing.
    """
    source = restore_variables(config.workdir, config._wanted)
    theirs = _flat({"params": source.params, **source.variables})
    ours = _flat(abstract)
    faults = [*_unmatched(config, ours, theirs)]
    taken, grown, lacking, displaced, misfits = {}, {}, [], [], []
    for name, wanted in ours.items():
        if _matches(config.fresh, name):
            continue
        if name not in theirs:
            lacking.append(name)
            continue
        found = _with_semantic_half(theirs[name], wanted) if _matches(config.pixel_half, name) else theirs[name]
        if config.grows(name) and _fits_in(found, wanted):
            grown[name] = found
        elif name in moved:
            displaced.append(name)
        elif (found.shape, found.dtype) == (wanted.shape, wanted.dtype):
            taken[name] = found
        else:
            misfits.append(f"{name} {_kind(theirs[name])}, here {_kind(wanted)}")
    unused = [name for name in theirs if name not in ours and not _matches((*config.fresh, *config.drop), name)]
    faults += _listed("missing there (fresh lets them start anew)", lacking)
    faults += _listed("with other ids there (grow moves them)", displaced)
    faults += _listed("of another shape or type (fresh lets them start anew)", misfits)
    faults += _listed("not used here (drop leaves them out)", unused)
    if faults:
        raise UserError(
            f"config.init_from.workdir = {config.workdir!r}, step {source.meta['step']}: {'; '.join(faults)}"
        )
    return WarmStart(taken, _origin(source), grown, moved)


def _origin(source: Restored) -> str:
    known = {name: value for name, value in source.meta["fingerprints"].items() if name != INIT_FROM}
    fingerprints = ", ".join(f"{name} {value[:12]}" for name, value in sorted(known.items()))
    return f"{source.config['kind']} {source.config['name']!r}, step {source.meta['step']} ({fingerprints})"


def _with_semantic_half(half: np.ndarray, wanted: Any) -> np.ndarray:
    """The pixel half with zero columns before it; as it is where it cannot be one."""
    fits = half.ndim == len(wanted.shape) and half.shape[:-1] == wanted.shape[:-1]
    if not fits or half.shape[-1] > wanted.shape[-1]:
        return half
    before = [(0, 0)] * (half.ndim - 1) + [(wanted.shape[-1] - half.shape[-1], 0)]
    return np.pad(half, before)


def _fits_in(found: np.ndarray, wanted: Any) -> bool:
    same = found.dtype == wanted.dtype and found.ndim == len(wanted.shape)
    return same and all(size <= room for size, room in zip(found.shape, wanted.shape))


def _with_part(array: Any, part: np.ndarray, moved: MovedEntries | None) -> jax.Array:
    """The array with its first entries along every dimension replaced, or those that a part's are moved to."""
    where: list[slice | np.ndarray] = [slice(0, size) for size in part.shape]
    if moved:
        part = part.take(np.arange(len(moved.places)), moved.axis)
        where[moved.axis] = moved.places
    return jnp.asarray(array).at[tuple(where)].set(part)


def _unmatched(config: InitFromConfig, ours: Iterable[str], theirs: Iterable[str]) -> Iterator[str]:
    for field, names in (("fresh", ours), ("drop", theirs), ("pixel_half", ours), ("grow", ours)):
        for pattern in getattr(config, field):
            if not any(re.search(pattern, name) for name in names):
                yield f"{field} {pattern!r} matches nothing; {nearest(pattern, list(names))}"


def _listed(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}"]


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _kind(array: Any) -> str:
    return f"{array.dtype}{tuple(array.shape)}"


def _flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")

"""AdamW with its schedules: which parameters are trained, which decay, and how the learning rate moves."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jaxtyping import Array, Bool, Float, Integer

from nextflow_jax.config import Fault, choose, nearest, pattern_faults
from nextflow_jax.errors import UserError

PATTERNS = ("no_decay", "freeze", "clip_groups", "rates", "train_rows")
"""Fields with regular expressions."""

NO_DECAY = (
    r"(^|/)(bias|scale|refine_biases)$",
    r"(^|/)embedding$",
    r"(^|/)embedding/(tokens|codes|scales|scale_count_gain)$",
    r"(^|/)(positions|probe)$",
    r"(^|/)log_temperature$",
)
"""Parameters that weight decay leaves alone: biases, gains of norms, embedding tables, the loss's temperature."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101); patterns are regular expressions searched in "a/b/c" names."""

    learning_rate: float = 1e-3
    """The highest value of the schedule; nothing multiplies it by the batch size."""
    schedule: str = "cosine"
    """"cosine", or "constant" (then a linear decay over the last `decay_steps`)."""
    warmup_steps: int = 100
    decay_steps: int = 0
    final_share: float = 0.0
    """The learning rate at the end, as a share of `learning_rate`."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.05
    no_decay: tuple[str, ...] = NO_DECAY
    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0 = no clipping."""
    clip_groups: tuple[str, ...] = ()
    """The parameters that match one of these are clipped on their own, all others together, each to `clip_norm`: so
    one player's gradients leave the other's alone. Of several patterns the first that matches counts."""
    rates: tuple[tuple[str, float], ...] = ()
    """(pattern, factor of the learning rate); of several patterns the first that matches counts, elsewhere it is 1."""
    ema_decay: float = 0.0
    """Moving average of the trained parameters, used by whoever reads the checkpoint; 0 = none is kept."""
    freeze: tuple[str, ...] = ()
    """Parameters that get no gradient and no optimizer state."""
    train_rows: tuple[tuple[str, int, int, int], ...] = ()
    """(pattern, axis, first, last): of the parameters that match, only the entries first <= i < last along the axis are
    trained, e.g. the new rows of a grown table; all others stay as they are, bit for bit. Of several ranges of one
    parameter each counts. Every pattern of this and of freeze, rates and clip_groups must match a parameter."""

    def faults(self) -> Iterator[Fault]:
        """The rules these settings break."""
        if self.schedule not in SCHEDULES:
            yield Fault("schedule", self.schedule, "is not known", nearest(self.schedule, list(SCHEDULES)))
        for name in ("learning_rate", "eps"):
            if getattr(self, name) <= 0:
                yield Fault(name, getattr(self, name), "must be positive", "use e.g. 1e-3 (eps: 1e-8)")
        for name in ("beta1", "beta2", "ema_decay", "final_share"):
            if not 0 <= getattr(self, name) < 1:
                yield Fault(name, getattr(self, name), "must be at least 0 and below 1", "see OptimizerConfig")
        for name in ("warmup_steps", "decay_steps", "weight_decay", "clip_norm"):
            if getattr(self, name) < 0:
                yield Fault(name, getattr(self, name), "must not be negative", "use 0 to switch it off")
        for pattern, factor in self.rates:
            if factor <= 0:
                yield Fault("rates", (pattern, factor), "factors must be positive", "use freeze to train nothing there")
        for pattern, axis, first, last in self.train_rows:
            if axis < 0 or not 0 <= first < last:
                rule = "needs an axis from 0 and a range of entries, 0 <= first < last"
                yield Fault("train_rows", (pattern, axis, first, last), rule, "see OptimizerConfig")
        bare = {name: tuple(entry[0] for entry in getattr(self, name)) for name in ("rates", "train_rows")}
        for name, patterns in {**vars(self), **bare}.items():
            if name in PATTERNS:
                yield from pattern_faults(name, patterns)


def _cosine(config: OptimizerConfig, steps: int, step: Array) -> Array:
    progress = jnp.clip((step - config.warmup_steps) / max(1, steps - config.warmup_steps), 0, 1)
    return 0.5 * (1 + jnp.cos(jnp.pi * progress))


def _constant(config: OptimizerConfig, steps: int, step: Array) -> Array:
    return jnp.clip((steps - step) / max(1, config.decay_steps), 0, 1)


SCHEDULES = {"cosine": _cosine, "constant": _constant}
"""Name -> share of the way from `final_share` (0) to the highest learning rate (1), after warm-up."""


def learning_rate(config: OptimizerConfig, steps: int, step: int | Integer[Array, ""]) -> Float[Array, ""]:
    """The learning rate of `step` (from 0) in a run of `steps`: linear warm-up, then the schedule.

    The first step already moves: warm-up step s has the share (s + 1) / warmup_steps.
    """
    step = jnp.asarray(step, jnp.float32)
    warm = jnp.minimum(1.0, (step + 1) / max(1, config.warmup_steps))
    share = choose("config.optimizer.schedule", config.schedule, SCHEDULES)(config, steps, step)
    return config.learning_rate * warm * (config.final_share + (1 - config.final_share) * share)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The update rule for one parameter tree. Holds no state; see `make_optimizer`."""

    config: OptimizerConfig
    steps: int
    frozen: frozenset[str]
    """Names of the parameters that are not trained."""
    factors: Mapping[str, float]
    """Factor of the learning rate, by the name of every trained parameter."""
    ranges: Mapping[str, tuple["_Range", ...]]
    """The entries that are trained, by the name of every parameter that is trained in part."""
    transform: optax.GradientTransformation
    """Clipping, Adam and decay, without the learning rate, over the trained parameters."""

    def split(self, params: Any) -> tuple[Any, Any]:
        """(trained, frozen) parts of a parameter tree; together they are the whole."""
        flat = traverse_util.flatten_dict(params, sep="/")
        trained = {name: leaf for name, leaf in flat.items() if name not in self.frozen}
        frozen = {name: leaf for name, leaf in flat.items() if name in self.frozen}
        return traverse_util.unflatten_dict(trained, sep="/"), traverse_util.unflatten_dict(frozen, sep="/")

    def update(self, grads: Any, opt_state: Any, trained: Any, step: Integer[Array, ""]) -> tuple[Any, Any]:
        """One AdamW step on the trained parameters; returns their new values and the new optimizer state."""
        updates, opt_state = self.transform.update(self.in_range(grads), opt_state, trained)
        rate = learning_rate(self.config, self.steps, step)
        factors = _by_name(trained, self.factors.__getitem__)
        new = jax.tree.map(
            lambda value, change, factor: value - (factor * rate * change).astype(value.dtype),
            trained,
            updates,
            factors,
        )
        return self.in_range(new, trained), opt_state

    def in_range(self, tree: Any, elsewhere: Any = None) -> Any:
        """The tree (trained parameters or the like) with what is outside of `train_rows` replaced.

        Args:
          tree: new values, gradients, ...
          elsewhere: a tree with the values for entries that are not trained; None = zeros.
        """
        if not self.ranges:
            return tree
        flat = traverse_util.flatten_dict(tree, sep="/")
        other = {} if elsewhere is None else traverse_util.flatten_dict(elsewhere, sep="/")
        for name, ranges in self.ranges.items():
            inside = functools.reduce(jnp.logical_or, [part.mask(flat[name].shape) for part in ranges])
            flat[name] = jnp.where(inside, flat[name], other.get(name, 0))
        return traverse_util.unflatten_dict(flat, sep="/")

    def average(self, ema: Any, trained: Any, step: Integer[Array, ""]) -> Any:
        """The next moving average; its decay is (1 + step) / (10 + step) at first, to forget the initial values."""
        if not self.config.ema_decay:
            return ema
        decay = jnp.minimum(self.config.ema_decay, (1 + step) / (10 + step)).astype(jnp.float32)
        mean = jax.tree.map(lambda mean, value: decay * mean + (1 - decay) * value.astype(mean.dtype), ema, trained)
        return self.in_range(mean, ema)


class _Range(NamedTuple):
    """Entries first <= i < last along an axis."""

    axis: int
    first: int
    last: int

    def mask(self, shape: tuple[int, ...]) -> Bool[Array, "..."]:
        """True where they are; broadcasts to the shape."""
        index = jnp.arange(shape[self.axis])
        inside = (self.first <= index) & (index < self.last)
        return inside.reshape([-1 if axis == self.axis else 1 for axis in range(len(shape))])


def make_optimizer(config: OptimizerConfig, steps: int, params: Any) -> Optimizer:
    """The optimizer for a parameter tree.

    Args:
      config: settings.
      steps: length of the run, which the schedules need.
      params: the (abstract) unboxed "params" collection: nested dictionaries.

    Raises:
      UserError: a pattern matches nothing, a range is outside of its parameter, or nothing is left to train.
    """
    shapes = {name: leaf.shape for name, leaf in traverse_util.flatten_dict(params, sep="/").items()}
    names = list(shapes)
    frozen = _frozen_names(config.freeze, names)
    trained_names = [name for name in names if name not in frozen]
    rated = _first_matches("rates", [pattern for pattern, _ in config.rates], trained_names)
    factors = {name: 1.0 if index is None else config.rates[index][1] for name, index in rated.items()}
    groups = _first_matches("clip_groups", config.clip_groups, trained_names)

    def decays(trained: Any) -> Any:
        return _by_name(trained, lambda name: not any(re.search(pattern, name) for pattern in config.no_decay))

    transform = optax.chain(
        _clip_groups(config.clip_norm, groups) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(config.beta1, config.beta2, config.eps),
        optax.add_decayed_weights(config.weight_decay, decays) if config.weight_decay else optax.identity(),
    )
    ranges = _trained_ranges(config.train_rows, {name: shapes[name] for name in trained_names})
    return Optimizer(config, steps, frozen, factors, ranges, transform)


def merge_params(*parts: Any) -> Any:
    """The parameter tree made of disjoint parts, such as those of `Optimizer.split`; later parts win."""
    flat = {}
    for part in parts:
        flat |= traverse_util.flatten_dict(part, sep="/")
    return traverse_util.unflatten_dict(flat, sep="/")


def _clip_groups(norm: float, groups: Mapping[str, int | None]) -> optax.GradientTransformation:
    """Clips the gradient of each group of parameters to a global norm of its own; `groups`: name -> group."""
    if len(set(groups.values())) == 1:
        return optax.clip_by_global_norm(norm)

    def clip(grads: Any, params: Any) -> Any:
        flat = traverse_util.flatten_dict(grads, sep="/")
        factors = {}
        for group in set(groups.values()):
            size = optax.tree.norm({name: grad for name, grad in flat.items() if groups[name] == group})
            factors[group] = jnp.where(size < norm, 1.0, norm / jnp.maximum(size, norm))
        clipped = {name: grad * factors[groups[name]].astype(grad.dtype) for name, grad in flat.items()}
        return traverse_util.unflatten_dict(clipped, sep="/")

    return optax.stateless(clip)


def _by_name(tree: Any, value: Callable[[str], Any]) -> Any:
    """The tree with `value(name)` for every leaf."""
    return traverse_util.unflatten_dict({name: value(name) for name in traverse_util.flatten_dict(tree, sep="/")}, "/")


def _first_matches(field: str, patterns: Sequence[str], names: Sequence[str]) -> dict[str, int | None]:
    """Name -> index of the first pattern that matches it, or None."""
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise UserError(
                f"config.optimizer.{field}: {pattern!r} matches no trained parameter; {nearest(pattern, names)}"
            )
    return {
        name: next((index for index, pattern in enumerate(patterns) if re.search(pattern, name)), None)
        for name in names
    }


def _frozen_names(patterns: Sequence[str], names: Sequence[str]) -> frozenset[str]:
    frozen = set()
    for pattern in patterns:
        matched = {name for name in names if re.search(pattern, name)}
        if not matched:
            raise UserError(f"config.optimizer.freeze: {pattern!r} matches no parameter; {nearest(pattern, names)}")
        frozen |= matched
    if len(frozen) == len(names):
        raise UserError(f"config.optimizer.freeze = {tuple(patterns)}: freezes every parameter; leave some to train")
    return frozenset(frozen)


def _trained_ranges(
    rows: Sequence[tuple[str, int, int, int]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[_Range, ...]]:
    """The ranges of every parameter that a row of `train_rows` matches."""
    ranges: dict[str, tuple[_Range, ...]] = {}
    for pattern, *where in rows:
        matched = [name for name in shapes if re.search(pattern, name)]
        if not matched:
            raise UserError(
                f"config.optimizer.train_rows: {pattern!r} matches no trained parameter; "
                f"{nearest(pattern, list(shapes))}"
            )
        for name in matched:
            part, shape = _Range(*where), shapes[name]
            if part.axis >= len(shape) or part.last > shape[part.axis]:
                raise UserError(
                    f"config.optimizer.train_rows: {(pattern, *where)} is outside of {name}, which has shape {shape}"
                )
            ranges[name] = (*ranges.get(name, ()), part)
    return ranges

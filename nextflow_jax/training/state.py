"""The training state and its layout: every array that a checkpoint holds, its shape, dtype and sharding."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from flax.core import meta
from jax.sharding import Mesh

from nextflow_jax import sharding
from nextflow_jax.training.keys import stream_key
from nextflow_jax.training.optimizer import Optimizer, OptimizerConfig, make_optimizer
from nextflow_jax.training.spikes import NO_RULE, SpikeConfig, nothing_seen
from nextflow_jax.training.task import Task


@flax.struct.dataclass
class TrainState:
    """All that training carries from step to step."""

    step: Any
    """int32 scalar: steps done."""
    params: Any
    """The "params" collection, frozen parameters included."""
    variables: Any
    """Other collections by name; the task's loss returns their next values."""
    opt_state: Any
    """State of the optax transform over the trained parameters."""
    ema: Any
    """Moving average of the trained parameters; empty when `ema_decay` is 0."""
    recent: Any = flax.struct.field(default_factory=dict)
    """Running means that tell a spike, see spikes.py; empty where there is no such rule."""


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """The state before any array exists; restore targets and compiled programs derive from it."""

    mesh: Mesh
    rules: sharding.Rules
    optimizer: Optimizer
    init: Callable[[jax.Array], Any]
    """`Task.init` as one compiled function, which laying out and making the state trace once for both."""
    boxed: Any
    """Its abstract variables with their logical axis names."""
    axes: TrainState
    """`sharding.LogicalAxes` of every array."""
    gradients: Any
    """The shardings of the trained parameters' gradients; None where they are those of the parameters."""
    abstract: TrainState
    """`jax.ShapeDtypeStruct` leaves that carry their shardings."""
    shardings: TrainState
    spikes: SpikeConfig


def make_layout(
    task: Task,
    config: OptimizerConfig,
    steps: int,
    mesh: Mesh,
    rules: sharding.Rules | sharding.StateRules,
    spikes: SpikeConfig = NO_RULE,
) -> StateLayout:
    """Traces `task.init` and lays the whole state out over the mesh.

    Args:
      task: what is trained.
      config: of the optimizer.
      steps: length of the run.
      mesh: where.
      rules: one table, which optimizer state, EMA and gradients follow, or one for each of them.
      spikes: the rule whose running means are part of the state.

    Raises:
      UserError: a dimension that the mesh does not divide, or a freeze pattern without a match.
    """
    rules = rules if isinstance(rules, sharding.StateRules) else sharding.StateRules.alike(rules)
    init = jax.jit(task.init)
    boxed = init.eval_shape(stream_key(0, "init"))
    variables, axes = dict(meta.unbox(boxed)), sharding.logical_axes(boxed)
    optimizer = make_optimizer(config, steps, variables["params"])
    trained = optimizer.split(variables["params"])[0]
    opt_state = jax.eval_shape(optimizer.transform.init, trained)

    recent = jax.eval_shape(lambda: nothing_seen(spikes))

    def trained_by(table: sharding.Rules) -> Any:
        return optimizer.split(sharding.shardings_of(boxed["params"], mesh, table))[0]

    def state_of(variables: Any, moments: Any, other: Any) -> TrainState:
        """The state with what is known of variables, of what is kept of each, and of the rest, in its place."""
        rest = dict(variables)
        kept = optax.tree_utils.tree_map_params(
            optimizer.transform, lambda _, known: known, opt_state, moments, transform_non_params=lambda _: other
        )
        ema = moments if config.ema_decay > 0 else {}
        means = dict.fromkeys(recent, other)
        return TrainState(step=other, params=rest.pop("params"), variables=rest, opt_state=kept, ema=ema, recent=means)

    placed = sharding.shardings_of(boxed, mesh, rules.params)
    shardings = state_of(placed, trained_by(rules.optimizer), sharding.replicated(mesh))
    shapes = state_of(variables, trained, jax.ShapeDtypeStruct((), jnp.int32))
    shapes = dataclasses.replace(shapes, opt_state=opt_state, recent=recent)
    abstract = jax.tree.map(
        lambda leaf, placement: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement), shapes, shardings
    )
    return StateLayout(
        mesh=mesh,
        rules=rules.params,
        optimizer=optimizer,
        init=init,
        boxed=boxed,
        axes=state_of(axes, optimizer.split(axes["params"])[0], sharding.LogicalAxes()),
        gradients=None if rules.gradients == rules.params else trained_by(rules.gradients),
        abstract=abstract,
        shardings=shardings,
        spikes=spikes,
    )


def init_state(
    task: Task,
    layout: StateLayout,
    seed: int,
    start: Callable[[Any], Any] = lambda variables: variables,
    given: Collection[str] = (),
) -> TrainState:
    """A fresh state, created in place on the mesh; the values do not depend on the mesh.

    Args:
      task: makes the variables.
      layout: where they go.
      seed: of the experiment.
      start: changes them at last, e.g. `WarmStart.apply`; keeps the tree, shapes and dtypes.
      given: names ("params/...") of arrays that are not made here, for `start` makes them where they belong: it gets
        their shapes with shardings in their place.
    """
    shardings = layout.shardings
    variable_shardings = {"params": shardings.params, **shardings.variables}
    fresh = _create(layout, seed, given)
    variables = dict(_place(start(task.after_init(fresh)), variable_shardings))
    params = variables.pop("params")
    trained = layout.optimizer.split(params)[0]
    opt_state = jax.jit(layout.optimizer.transform.init, out_shardings=shardings.opt_state)(trained)
    ema = {}
    if layout.optimizer.config.ema_decay:
        ema = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings.ema)(trained)
    step = jax.device_put(jnp.zeros((), jnp.int32), shardings.step)
    recent = jax.device_put(nothing_seen(layout.spikes), shardings.recent)
    state = TrainState(step=step, params=params, variables=variables, opt_state=opt_state, ema=ema, recent=recent)
    _check_like(state, layout.abstract)
    return state


def abstract_variables(task: Task) -> Any:
    """Shapes and dtypes of a task's variables by collection, unboxed."""
    return dict(meta.unbox(jax.eval_shape(task.init, stream_key(0, "init"))))


def leaves_by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a state, or of part of one, by path: "params/layers/mlp/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def num_parameters(params: Any) -> int:
    """Elements of a (possibly abstract) tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _create(layout: StateLayout, seed: int, given: Collection[str]) -> Any:
    """Fresh variables on the mesh; shapes with shardings where they are given."""
    abstract = _flat({"params": layout.abstract.params, **layout.abstract.variables})
    made = sorted(path for path, leaf in abstract.items() if hasattr(leaf, "shape") and "/".join(path) not in given)

    def create(key: jax.Array) -> list[jax.Array]:
        fresh = _flat(meta.unbox(layout.init(key)))
        return [fresh[name] for name in made]

    arrays = jax.jit(create, out_shardings=[abstract[name].sharding for name in made])(stream_key(seed, "init"))
    return traverse_util.unflatten_dict({**abstract, **dict(zip(made, arrays, strict=True))})


def _flat(tree: Any) -> dict[tuple[str, ...], Any]:
    """Leaves by path; empty collections stay."""
    return traverse_util.flatten_dict(tree, keep_empty_nodes=True)


def _place(variables: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda leaf, placement: jax.device_put(leaf, placement), variables, shardings)


def _check_like(state: TrainState, abstract: TrainState) -> None:
    for (path, leaf), (_, expected) in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree_util.tree_leaves_with_path(abstract), strict=True
    ):
        if leaf.shape != expected.shape or leaf.dtype != expected.dtype:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{name} became {leaf.dtype}{leaf.shape} after init, not {expected.dtype}{expected.shape}")

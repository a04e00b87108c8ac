"""Where arrays live: the device mesh and the one table from logical axes (what a dimension means) to mesh axes.

Parameters name their dimensions with logical axes where they are declared (`nn.with_logical_partitioning`); everything
else about placement follows from `LOGICAL_RULES`, rows of which an experiment may override. Mesh axes are of type Auto:
the compiler places intermediate values, and `constrain` pins the few that matter.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nextflow_jax.config import Fault, nearest
from nextflow_jax.errors import UserError

MESH_AXES = ("slice", "data", "fsdp", "tensor", "context")
"""slice: data-parallel between slices; fsdp: data-parallel with split parameters; context: splits the sequence, or the
rows of feature maps."""

BATCH_AXES = ("slice", "data", "fsdp")

LOGICAL_RULES: dict[str, tuple[str, ...]] = {
    # Activations.
    "batch": BATCH_AXES,
    "sequence": ("context",),
    "image_rows": ("context",),
    # Dimensions of decoder, ViT and text-tower parameters. Devices that share a row have no use for copies of them: a
    # step of the 7B decoder at context 8 x fsdp 8 takes a third of the memory (experiments/bench/long_rows.py).
    "layers": (),
    "embed": ("fsdp", "context"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "text_embed": ("fsdp",),
    "scales": (),
    "patch": (),
    # Dimensions of the vision tokenizer's parameters and state.
    "codes": (),
    "code": (),
    "conv_in": (),
    "conv_out": (),
}
"""Logical axis -> mesh axes that split it; () means replicated."""

LOGICAL_AXES = tuple(LOGICAL_RULES)

Rules = Mapping[str, tuple[str, ...]]


class StateRules(NamedTuple):
    """The tables by which parts of a training state are laid out."""

    params: Rules
    """Of parameters, other variables and activations."""
    optimizer: Rules
    """Of the optimizer's moments and the moving average."""
    gradients: Rules

    @classmethod
    def alike(cls, rules: Rules) -> "StateRules":
        """One table for all."""
        return cls(rules, rules, rules)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; at most one may be -1, which takes the devices that the others leave."""

    slice: int = 1
    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1

    def faults(self) -> Iterator[Fault]:
        """The rules this mesh breaks, whatever the number of devices."""
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            if size < 1 and size != -1:
                yield Fault(name, size, "must be positive, or -1 for the remaining devices", "use 1")
        free = [name for name, size in sizes.items() if size == -1]
        if len(free) > 1:
            yield Fault(free[1], -1, f"only one axis may be -1, and {free[0]} is", "give its number of devices")

    def resolve(self, num_devices: int) -> dict[str, int]:
        """The axis sizes on `num_devices` devices.

        Raises:
          UserError: the sizes do not multiply to the number of devices.
        """
        sizes = dataclasses.asdict(self)
        fixed = math.prod(size for size in sizes.values() if size != -1)
        shape = ", ".join(f"{name}={size}" for name, size in sizes.items())
        if -1 not in sizes.values() and fixed != num_devices:
            raise UserError(
                f"config.mesh ({shape}) needs {fixed} devices and there are {num_devices}; set one axis to -1"
            )
        if num_devices % fixed:
            raise UserError(
                f"config.mesh ({shape}): {fixed} does not divide the {num_devices} devices there are; change its sizes"
            )
        return {name: num_devices // fixed if size == -1 else size for name, size in sizes.items()}


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config` over `devices` (all devices of all processes when None).

    Where the devices are slices connected by a slower network, the outer parts of the axes slice, data and fsdp, in
    this order, go across them, so that all else stays within one.

    Raises:
      UserError: the axis sizes do not fit the number of devices, or would put tensor or context across slices of TPUs.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = config.resolve(len(devices))
    shape = tuple(sizes[name] for name in MESH_AXES)
    across = _across_slices(sizes, devices)
    if across:
        within = tuple(size // across[name] for name, size in sizes.items())
        grid = mesh_utils.create_hybrid_device_mesh(
            within, tuple(across.values()), devices=devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _across_slices(sizes: Mapping[str, int], devices: Sequence[jax.Device]) -> dict[str, int]:
    """By axis, how many of its parts lie in different slices; {} where that does not matter."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return {}
    across, left = dict.fromkeys(sizes, 1), slices
    for axis in BATCH_AXES:
        across[axis] = math.gcd(sizes[axis], left)
        left //= across[axis]
    if left == 1:
        return across
    if devices[0].platform != "tpu":  # slow, but it works
        return {}
    shape = ", ".join(f"{name}={size}" for name, size in sizes.items())
    raise UserError(
        f"config.mesh ({shape}): {slices} slices must divide slice x data x fsdp, for tensor and context stay within "
        f"one; set config.mesh.slice={slices}"
    )


def make_rules(
    overrides: Sequence[tuple[str, tuple[str, ...]]] = (), base: Rules | None = None
) -> dict[str, tuple[str, ...]]:
    """`LOGICAL_RULES`, or `base`, with rows replaced by `overrides` = ((logical axis, (mesh axis, ...)), ...).

    Raises:
      UserError: an override names a logical or mesh axis that does not exist.
    """
    rules = dict(LOGICAL_RULES if base is None else base)
    for logical, mesh_axes in overrides:
        if logical not in rules:
            raise UserError(f"config.rules: {logical!r} is not a logical axis; {nearest(logical, LOGICAL_AXES)}")
        for axis in mesh_axes:
            if axis not in MESH_AXES:
                raise UserError(f"config.rules: {logical!r} -> {axis!r} is not a mesh axis; {nearest(axis, MESH_AXES)}")
        rules[logical] = tuple(mesh_axes)
    return rules


def shardings_of(variables: Any, mesh: Mesh, rules: Rules) -> Any:
    """The sharding of every array of a tree whose leaves are boxed with logical axis names; unboxed ones replicate.

    Args:
      variables: an abstract (`jax.eval_shape`) or concrete tree of flax boxes.
      mesh: from `make_mesh`.
      rules: from `make_rules`.

    Returns:
      The tree without boxes, a NamedSharding for each array.

    Raises:
      UserError: an unknown logical axis, one mesh axis used twice by one array, or a dimension that the mesh does not
        divide, with the array's name and the nearest sizes that work.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(variables, is_leaf=_is_box)
    specs = (_leaf_spec(_path_name(path), leaf, mesh, rules) for path, leaf in leaves)
    return treedef.unflatten(NamedSharding(mesh, spec) for spec in specs)


@dataclasses.dataclass(frozen=True)
class LogicalAxes:
    """The logical axis of each dimension of an array, None where one is not named; a leaf of trees. (): none are."""

    names: tuple[str | None, ...] = ()


def logical_axes(variables: Any) -> Any:
    """The `LogicalAxes` of every array of a tree whose leaves are boxed; the tree without boxes."""

    def names(leaf: Any) -> LogicalAxes:
        return LogicalAxes(tuple(leaf.names)) if _is_box(leaf) else LogicalAxes()

    return jax.tree.map(names, variables, is_leaf=_is_box)


def batch_sharding(mesh: Mesh, rules: Rules, axes: Sequence[str] = ("batch",)) -> NamedSharding:
    """The sharding of batch arrays, whose first dimensions have these logical axes; the others are whole."""
    return NamedSharding(mesh, PartitionSpec(*(rules[axis] for axis in axes)))


def local_part(rows: NamedSharding, global_size: int) -> tuple[int, int]:
    """(part, number of parts): which of equal blocks of rows this process must provide for arrays sharded by `rows`.

    Processes whose devices hold the same rows (a tensor or context axis over hosts) get the same part: whole rows,
    of which they keep their devices' positions.

    Raises:
      UserError: the rows do not divide over the mesh, or this process's rows are not one block.
    """
    pieces = math.prod(rows.mesh.shape[axis] for axis in rows.spec[0])
    if global_size % pieces:
        raise UserError(
            f"config.train.batch_size = {global_size} is not divisible by the {pieces} row blocks of the mesh; "
            f"nearest sizes: {_multiples_near(global_size, pieces)}"
        )
    first_dimension = NamedSharding(rows.mesh, PartitionSpec(rows.spec[0]))
    indices = first_dimension.addressable_devices_indices_map((global_size,)).values()
    blocks = [index[0].indices(global_size)[:2] for index in indices]
    start, stop = min(block[0] for block in blocks), max(block[1] for block in blocks)
    size = stop - start
    if sum(end - begin for begin, end in set(blocks)) != size or start % size or global_size % size:
        raise UserError("this process's devices hold scattered rows of the batch; order the mesh axes by host")
    return start // size, global_size // size


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


_CONTEXT: contextvars.ContextVar[tuple[Mesh, Rules] | None] = contextvars.ContextVar("mesh and rules", default=None)


@contextlib.contextmanager
def logical_context(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """Within it, `constrain` acts on values being traced.

    Flax's own context of logical rules is not used: with it, parameters are constrained where modules read them, which
    fails for layers that reshape their kernels (DenseGeneral).
    """
    token = _CONTEXT.set((mesh, rules))
    try:
        yield
    finally:
        _CONTEXT.reset(token)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins the placement of an intermediate value; no-op outside `logical_context`.

    Args:
      x: any array.
      axes: a logical axis for each dimension, None where it stays whole.
    """
    context = _CONTEXT.get()
    if context is None:
        return x
    mesh, rules = context
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, _spec("an activation", x.shape, axes, mesh, rules)))


def with_gradients_at(tree: Any, placement: Any) -> Any:
    """The tree, whose gradients lie by `placement`, a tree of shardings; None: where the compiler puts them."""
    if placement is None:
        return tree

    @jax.custom_vjp
    def same(tree: Any) -> Any:
        return tree

    same.defvjp(lambda tree: (tree, None), lambda _, grads: (jax.lax.with_sharding_constraint(grads, placement),))
    return same(tree)


def partition(name: str, x: jax.Array, *axes: str | None) -> PartitionSpec:
    """How `constrain` with the same axes would split an array; whole outside `logical_context`.

    Args:
      name: what the array is, for errors.
      x: any array.
      axes: a logical axis for each dimension, None where it stays whole.

    Raises:
      UserError: a dimension that the mesh does not divide.
    """
    context = _CONTEXT.get()
    return PartitionSpec() if context is None else _spec(name, x.shape, axes, *context)


def mesh_axes(logical: str) -> tuple[Mesh | None, tuple[str, ...]]:
    """The mesh that is being traced for, None outside `logical_context`, and its axes that split a logical axis."""
    context = _CONTEXT.get()
    if context is None:
        return None, ()
    mesh, rules = context
    return mesh, tuple(axis for axis in rules[logical] if mesh.shape[axis] > 1)


_PLATFORM_OF: contextvars.ContextVar[jax.Device | None] = contextvars.ContextVar("platform of", default=None)


@contextlib.contextmanager
def traced_for(device: jax.Device) -> Iterator[None]:
    """Within it, and outside of `logical_context`, `platform` is that of a device, which need not be there."""
    token = _PLATFORM_OF.set(device)
    try:
        yield
    finally:
        _PLATFORM_OF.reset(token)


def platform() -> str:
    """ "cpu", "gpu" or "tpu": what is being traced for, the devices of the mesh in `logical_context`, else the default.

    Whoever chooses an implementation by platform asks here, so that programs compiled ahead of time for absent devices
    get those devices' kernels.
    """
    context = _CONTEXT.get()
    device = _PLATFORM_OF.get() if context is None else context[0].devices.flat[0]
    name = jax.default_backend() if device is None else device.platform
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)


def _leaf_spec(name: str, leaf: Any, mesh: Mesh, rules: Rules) -> PartitionSpec:
    return _spec(name, leaf.value.shape, leaf.names, mesh, rules) if _is_box(leaf) else PartitionSpec()


def _spec(name: str, shape: Sequence[int], names: Sequence[str | None], mesh: Mesh, rules: Rules) -> PartitionSpec:
    entries, used = [], set()
    if len(names) != len(shape):
        raise UserError(f"{name} {tuple(shape)} has {len(names)} logical axes, {names}; name every dimension")
    for size, logical in zip(shape, names):
        if logical is not None and logical not in rules:
            raise UserError(f"{name}: {logical!r} is not a logical axis; {nearest(logical, list(rules))}")
        axes = tuple(axis for axis in rules[logical] if mesh.shape[axis] > 1) if logical else ()
        if used & set(axes):
            raise UserError(
                f"{name}: logical axes {names} put mesh axis {sorted(used & set(axes))[0]!r} on two dimensions; "
                "override one of their rows in config.rules"
            )
        used |= set(axes)
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            raise UserError(
                f"{name} {tuple(shape)}: dimension {logical!r} = {size} is not divisible by {parts} "
                f"(mesh axes {', '.join(axes)}); nearest sizes: {_multiples_near(size, parts)}"
            )
        entries.append(axes or None)
    return PartitionSpec(*entries)


def _multiples_near(size: int, divisor: int) -> str:
    below, above = size // divisor * divisor, -(-size // divisor) * divisor
    return f"{below} or {above}" if below else str(above)


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.Partitioned)


def _path_name(path: Sequence[Any]) -> str:
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")

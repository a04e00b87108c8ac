"""The mesh, the table of logical axes and what it refuses."""

from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nextflow_jax import sharding
from nextflow_jax.errors import UserError
from nextflow_jax.sharding import MeshConfig


def cube():
    return sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def boxed(shape, *names):
    return {"w": nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)}


def test_free_axis_takes_the_devices_that_are_left():
    mesh = sharding.make_mesh(MeshConfig(data=-1, tensor=4))
    assert dict(mesh.shape) == {"slice": 1, "data": 2, "fsdp": 1, "tensor": 4, "context": 1}
    assert len({device.id for device in mesh.devices.flat}) == 8


@pytest.mark.parametrize("config", [MeshConfig(data=3), MeshConfig(tensor=3), MeshConfig(data=2, fsdp=2)])
def test_mesh_that_does_not_fit_the_devices(config):
    with pytest.raises(UserError, match="8"):
        sharding.make_mesh(config)


def test_mesh_faults():
    assert [fault.field for fault in MeshConfig(fsdp=-1, tensor=0).faults()] == ["tensor", "fsdp"]
    assert not list(MeshConfig().faults())


def test_arrays_follow_the_table():
    tree = {**boxed((4, 6), "embed", "mlp"), "b": jax.ShapeDtypeStruct((3,), jnp.float32)}
    shardings = sharding.shardings_of(tree, cube(), sharding.make_rules())
    assert shardings["w"].spec == PartitionSpec(("fsdp",), ("tensor",))
    assert shardings["b"].spec == PartitionSpec()


def test_overriding_a_row():
    rules = sharding.make_rules((("embed", ()), ("mlp", ("fsdp", "tensor"))))
    spec = sharding.shardings_of(boxed((4, 8), "embed", "mlp"), cube(), rules)["w"].spec
    assert spec == PartitionSpec(None, ("fsdp", "tensor"))


@pytest.mark.parametrize(
    ("shape", "names", "message"),
    [
        ((4, 7), ("embed", "mlp"), "w (4, 7): dimension 'mlp' = 7 is not divisible by 2.*6 or 8"),
        ((4, 1), ("embed", "mlp"), "nearest sizes: 2"),
        ((4, 4), ("embed", "text_embed"), "'fsdp' on two dimensions"),
        ((4, 4), ("embed", "mpl"), "'mpl' is not a logical axis; did you mean mlp"),
        ((4, 4), ("embed",), "name every dimension"),
    ],
)
def test_what_the_table_refuses(shape, names, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace(")", r"\)")):
        sharding.shardings_of(boxed(shape, *names), cube(), sharding.make_rules())


@pytest.mark.parametrize("override", [("embde", ("fsdp",)), ("embed", ("fsdpp",))])
def test_overrides_name_axes_that_exist(override):
    with pytest.raises(UserError, match="did you mean"):
        sharding.make_rules((override,))


def test_constrain_acts_inside_the_context_alone():
    mesh, rules = cube(), sharding.make_rules()

    x = jax.device_put(jnp.arange(32.0).reshape(8, 4), sharding.replicated(mesh))

    def double(x):
        return sharding.constrain(x * 2, "batch", "mlp")

    assert jax.jit(double)(x).sharding.is_fully_replicated
    with sharding.logical_context(mesh, rules):
        inside = jax.jit(lambda x: double(x))(x)
    assert inside.sharding.spec == PartitionSpec(("data", "fsdp"), "tensor")
    np.testing.assert_array_equal(inside, x * 2)


def test_platform_is_that_of_the_mesh_being_traced_for():
    assert sharding.platform() == "cpu"
    with sharding.logical_context(cube(), sharding.make_rules()):
        assert sharding.platform() == "cpu"
    mesh = Mesh(np.array(mock.Mock(platform="tpu"), object).reshape(1, 1, 1, 1, 1), sharding.MESH_AXES)
    with sharding.logical_context(mesh, sharding.make_rules()):
        assert sharding.platform() == "tpu"
    assert sharding.platform() == "cpu"


def test_one_process_provides_the_whole_batch():
    rows = sharding.batch_sharding(cube(), sharding.make_rules())
    assert sharding.local_part(rows, 8) == (0, 1)
    with pytest.raises(UserError, match="nearest sizes: 4 or 8"):
        sharding.local_part(rows, 6)


def slices_of(count, platform):
    """Eight devices in `count` slices, of no machine."""
    kind = {"platform": platform, "device_kind": "none", "process_index": 0}
    return [mock.Mock(spec=jax.Device, id=i, slice_index=i * count // 8, **kind) for i in range(8)]


@pytest.mark.parametrize(
    ("config", "across"),
    [
        (MeshConfig(slice=2, data=1, fsdp=4), {"slice": 2}),
        (MeshConfig(data=2, fsdp=4), {"data": 2}),
        (MeshConfig(data=1, fsdp=8), {"fsdp": 2}),
        (MeshConfig(slice=2, data=2, fsdp=2), {"slice": 2}),
    ],
)
def test_the_outermost_axes_go_across_slices(config, across):
    devices = slices_of(2, "cpu")
    grid = sharding.make_mesh(config, devices).devices
    for axis, name in enumerate(sharding.MESH_AXES):
        parts = across.get(name, 1)
        blocks = np.split(grid, parts, axis) if parts > 1 else [grid]
        slices = [{device.slice_index for device in block.flat} for block in blocks]
        assert slices == ([{0}, {1}] if parts > 1 else [{0, 1}])


def test_tensor_stays_within_a_slice_of_tpus():
    with pytest.raises(UserError, match="2 slices must divide.*config.mesh.slice=2"):
        sharding.make_mesh(MeshConfig(data=1, tensor=8), slices_of(2, "tpu"))


def test_gradients_lie_where_they_are_told_to():
    mesh = cube()
    placement = {"w": NamedSharding(mesh, PartitionSpec("data"))}

    def gradients(w):
        return jax.grad(lambda tree: jnp.sum(sharding.with_gradients_at(tree, placement)["w"] ** 2))({"w": w})

    w = jax.device_put(jnp.arange(8.0), sharding.replicated(mesh))
    assert jax.jit(gradients)(w)["w"].sharding.spec == PartitionSpec("data")
    np.testing.assert_array_equal(jax.jit(gradients)(w)["w"], 2 * w)

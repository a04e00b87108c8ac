"""The fused loss equals the plain one, alone and over any mesh, and moves the head once."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from nextflow_jax.ops.cross_entropy import fused, reference
from nextflow_jax.sharding import BATCH_AXES, MeshConfig, logical_context, make_mesh, make_rules
from tests.ops.cross_entropy.cases import case, check, gradients, plain


@pytest.mark.parametrize(("block", "vocabulary"), [(128, 300), (256, 300), (1024, 256)])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_equals_the_reference_with_gradients(block, vocabulary, label_smoothing):
    hidden, head, targets = case(vocabulary=vocabulary)
    function = functools.partial(fused.linear_cross_entropy, block=block)
    got = gradients(function, label_smoothing, targets)(hidden, head)
    check(got, plain(hidden, head, targets, label_smoothing))


def test_bfloat16_products_are_summed_in_float32():
    hidden, head, targets = case(length=128, vocabulary=300, width=64)
    hidden = hidden.astype(jnp.bfloat16)
    got = gradients(functools.partial(fused.linear_cross_entropy, block=128), 0.1, targets)(hidden, head)
    expected = plain(hidden, head, targets, 0.1)
    assert [leaf.dtype for leaf in jax.tree.leaves(got)] == [leaf.dtype for leaf in jax.tree.leaves(expected)]
    check(got[0], expected[0])
    check(got[1], expected[1], 1e-2)


MESHES = {
    "fsdp": MeshConfig(data=2, fsdp=4),
    "tensor": MeshConfig(data=1, fsdp=2, tensor=4),
    "context": MeshConfig(data=1, fsdp=2, tensor=2, context=2),
    "slice": MeshConfig(slice=2, data=1, fsdp=2, context=2),
}


def spread_case(mesh, **sizes):
    """A case laid out as training lays it out."""
    hidden, head, targets = case(rows=8, length=16, **sizes)
    place = {
        "tokens": PartitionSpec(BATCH_AXES, "context"),
        "head": PartitionSpec("fsdp", "tensor" if head.shape[1] % mesh.shape["tensor"] == 0 else None),
    }
    put = lambda x, name: jax.device_put(x, NamedSharding(mesh, place[name]))  # noqa: E731
    return put(hidden, "tokens"), put(head, "head"), put(targets, "tokens")


# 302 columns do not divide over 4 devices: the last ones are padded.
@pytest.mark.parametrize(("name", "vocabulary"), [*((name, 512) for name in MESHES), ("tensor", 302)])
def test_eight_devices_equal_one(name, vocabulary):
    mesh = make_mesh(MESHES[name])
    hidden, head, targets = spread_case(mesh, vocabulary=vocabulary)
    with logical_context(mesh, make_rules()):
        function = functools.partial(fused.linear_cross_entropy, block=128)
        got = gradients(function, 0.1, targets)(hidden, head)
    check(got, plain(*case(rows=8, length=16, vocabulary=vocabulary), 0.1))


def test_rows_that_the_mesh_does_not_divide_stay_whole():
    mesh = make_mesh(MESHES["fsdp"])
    hidden, head, targets = case(rows=3)
    with logical_context(mesh, make_rules()):
        got = gradients(fused.linear_cross_entropy, 0.0, targets)(hidden, head)
    check(got, plain(hidden, head, targets, 0.0))


def compiled_text(name, width, vocabulary):
    mesh = make_mesh(MESHES[name])
    hidden, head, targets = spread_case(mesh, vocabulary=vocabulary, width=width)
    with logical_context(mesh, make_rules()):
        function = functools.partial(fused.linear_cross_entropy, block=128)
        return gradients(function, 0.0, targets).lower(hidden, head).compile().as_text()


def computations(text):
    """Name -> lines of every computation of a compiled program."""
    found = re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    return {name: body.splitlines() for name, body in found}


def test_the_head_is_gathered_once_and_its_gradient_reduced_once():
    width, vocabulary = 24, 1024
    text = compiled_text("fsdp", width, vocabulary)
    bodies = computations(text)
    assert len(re.findall(r" while\(", text)) == 2
    gathers = [line for line in text.splitlines() if re.search(r" all-gather(-start)?\(", line)]
    assert len(gathers) == 1 and f"[{width},{vocabulary}]" in gathers[0]
    looped = set(re.findall(r"(?:body|condition)=%?([\w.\-]+)", text))
    for name in looped:
        assert not [line for line in bodies[name] if re.search(r" (all-|reduce-scatter|collective-)\S*\(", line)]
    scatters = [line for line in text.splitlines() if re.search(r" reduce-scatter(-start)?\(", line)]
    assert len(scatters) == 1 and f"[{width // 4},{vocabulary}]" in scatters[0]


def test_no_array_holds_the_logits_of_all_columns():
    # 8 rows x 16 positions on 8 devices are 16 tokens each.
    shapes = set(re.findall(r"f32\[([\d,]+)\]", compiled_text("fsdp", 24, 1024)))
    sizes = {tuple(map(int, shape.split(","))) for shape in shapes}
    assert (16, 128) in sizes
    assert not [shape for shape in sizes if shape[-1] == 1024 and np.prod(shape) >= 16 * 1024 and shape[0] != 24]


def test_needs_less_memory():
    hidden, head, targets = case(length=256, vocabulary=2048)

    def temporary_bytes(function):
        return gradients(function, 0.0, targets).lower(hidden, head).compile().memory_analysis().temp_size_in_bytes

    plain_bytes = temporary_bytes(reference.linear_cross_entropy)
    assert temporary_bytes(functools.partial(fused.linear_cross_entropy, block=128)) < plain_bytes / 4

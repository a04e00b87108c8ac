"""Tables read exactly what they say, name everything that does not fit at once, and write back what they read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.convert.mapping import Row, check, matches, read, write
from nextflow_jax.convert.transforms import CONV, HEADS_IN, LINEAR, split
from nextflow_jax.errors import UserError

ROWS = (
    Row("embed.weight", "embedding"),
    Row("layers.{layer}.fc.weight", "blocks/up/kernel", LINEAR),
    Row("down.{level}.{block}.weight", "level_{level}/kernel", CONV),
    Row("attn.qkv", ("query/kernel", "key/kernel", "value/kernel"), split(3).then(HEADS_IN)),
    Row("optional", "optional"),
)
SHAPES = {
    "embedding": (7, 4), "blocks/up/kernel": (3, 4, 5), "level_0/kernel": (2, 1, 1, 4, 6),
    "level_1/kernel": (1, 3, 3, 6, 6), "query/kernel": (4, 2, 2), "key/kernel": (4, 2, 2), "value/kernel": (4, 2, 2),
}  # fmt: skip


def nested(flat):
    tree = {}
    for name, value in flat.items():
        *folders, leaf = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = value
    return tree


EXPECTED = nested({name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()})


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    shapes = {"embed.weight": (7, 4), "down.0.0.weight": (6, 4, 1, 1), "down.0.1.weight": (6, 4, 1, 1)}
    shapes |= {"down.1.0.weight": (6, 6, 3, 3), "attn.qkv": (12, 4), "buffers.3.ids": (2,)}
    shapes |= {f"layers.{layer}.fc.weight": (5, 4) for layer in range(3)}
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


IGNORE = ("buffers.*",)


def test_fields_are_stacked_or_substituted(arrays):
    tree = read(ROWS, arrays, EXPECTED, "file", IGNORE)
    np.testing.assert_array_equal(tree["embedding"], arrays["embed.weight"])
    for layer in range(3):
        np.testing.assert_array_equal(tree["blocks"]["up"]["kernel"][layer], arrays[f"layers.{layer}.fc.weight"].T)
    np.testing.assert_array_equal(tree["level_0"]["kernel"][1, 0, 0], arrays["down.0.1.weight"][:, :, 0, 0].T)
    np.testing.assert_array_equal(tree["key"]["kernel"][:, 1, 0], arrays["attn.qkv"][6])


def test_writing_gives_back_every_array_bit_by_bit(arrays):
    written = write(ROWS, read(ROWS, arrays, EXPECTED, "file", IGNORE))
    del arrays["buffers.3.ids"]
    assert written.keys() == arrays.keys()
    for name, array in arrays.items():
        assert written[name].tobytes() == array.tobytes() and written[name].flags["C_CONTIGUOUS"]


def test_checking_sees_what_reading_sees_and_makes_nothing(arrays):
    stand_ins = {name: np.broadcast_to(np.float32(1), array.shape) for name, array in arrays.items()}
    assert check(ROWS, stand_ins, EXPECTED, "file", IGNORE) is None
    stand_ins["embed.weight"] = np.broadcast_to(np.float64(1), (1_000_000, 1_000_000))
    del stand_ins["attn.qkv"]
    with pytest.raises(UserError) as checked:
        check(ROWS, stand_ins, EXPECTED, "file", IGNORE)
    with pytest.raises(UserError) as read_in:
        read(ROWS, stand_ins, EXPECTED, "file", IGNORE)
    assert str(checked.value) == str(read_in.value) and "[1000000, 1000000]" in str(read_in.value)


def test_everything_wrong_is_in_one_message(arrays):
    del arrays["layers.1.fc.weight"], arrays["buffers.3.ids"]
    arrays["down.2.0.weight"] = arrays["embed.weight"]
    arrays["embed.weight"] = arrays["embed.weight"].T
    arrays["attn.qkv"] = arrays["attn.qkv"][:11]
    arrays["layers.0.fc.weight"] = arrays["layers.0.fc.weight"].astype(np.float64)
    rows = (*ROWS, Row("down.1.0.weight", "level_1/kernel", CONV))
    expected = {**EXPECTED, "bias": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with pytest.raises(UserError) as error:
        read(rows, arrays, expected, "some/file", IGNORE)
    for part in (
        "some/file does not fit",
        "in no row of the table (1): bias",
        "missing (1): layers.1.fc.weight for blocks/up/kernel",
        "unmapped (1): down.2.0.weight float32[7, 4]",
        "level_1/kernel is made by down.{level}.{block}.weight and down.1.0.weight",
        "embed.weight for embedding gives [4, 7], not [7, 4]",
        "attn.qkv float32[11, 4]",
        "layers.0.fc.weight for blocks/up/kernel is float64, not float32",
        "ignored but absent (1): buffers.*",
    ):
        assert part in str(error.value)


def test_layers_past_the_configured_ones_are_not_dropped_silently(arrays):
    arrays["layers.3.fc.weight"] = arrays["layers.0.fc.weight"]
    with pytest.raises(UserError, match=r"unmapped \(1\): layers.3.fc.weight"):
        read(ROWS, arrays, EXPECTED, "file", IGNORE)


def test_one_source_for_two_rows_is_a_duplicate(arrays):
    rows = (*ROWS, Row("embed.weight", "head"))
    expected = {**EXPECTED, "head": jax.ShapeDtypeStruct((7, 4), jnp.float32)}
    with pytest.raises(UserError, match="embed.weight makes embedding and head"):
        read(rows, arrays, expected, "file", IGNORE)


def test_narrower_floats_widen_exactly(arrays):
    narrow = {name: jnp.asarray(array, jnp.bfloat16) for name, array in arrays.items()}
    tree = read(ROWS, narrow, EXPECTED, "file", IGNORE)
    assert tree["embedding"].dtype == np.float32
    np.testing.assert_array_equal(tree["embedding"], np.asarray(narrow["embed.weight"], np.float32))
    with pytest.raises(UserError, match=r"mistyped \(10\)"):
        read(ROWS, arrays, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), EXPECTED), "f", IGNORE)


def test_writing_a_tree_with_strangers_is_refused():
    with pytest.raises(UserError, match=r"in no row of the table \(1\): stranger"):
        write(ROWS, {"stranger": np.zeros(3)})
    with pytest.raises(UserError, match="key/kernel, made together with query/kernel"):
        write(ROWS, {"query": {"kernel": np.zeros((4, 2, 2))}})


def test_fields_are_plain_integers():
    assert matches("a.{n}.b", "a.12.b") == {"n": 12}
    assert matches("a.{n}.b", "a.01.b") is None and matches("a.{n}.b", "axb.1.b") is None

"""A grown table: the old rows' bits, twins, the mean, codes of the text's length; the same over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nextflow_jax.models.growth import code_rows, grow_rows, mean_norm
from nextflow_jax.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=21, codebook_size=6, pad_multiple=8)
TWINS = {"eos": 4, "boi": 20}
RANDOM = np.random.default_rng(0)
WIDTH = 16
ROWS = RANDOM.standard_normal((VOCABULARY.size, WIDTH)).astype(np.float32)
FEATURES = RANDOM.standard_normal((6, WIDTH)).astype(np.float32) * RANDOM.uniform(1, 5, (6, 1)).astype(np.float32)


def grow(rows, features):
    return grow_rows(rows, VOCABULARY, TWINS, code_rows(features, rows, VOCABULARY.text_size))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_every_row_starts_as(dtype):
    rows = jnp.asarray(ROWS, dtype)
    grown = np.asarray(grow(rows, jnp.asarray(FEATURES)))
    text = np.asarray(rows)[:21]
    assert grown.dtype == dtype and grown.shape == ROWS.shape
    assert grown[:21].tobytes() == text.tobytes()
    mean = text.astype(np.float32).mean(axis=0)
    assert grown[VOCABULARY.eos].tobytes() == text[4].tobytes()
    assert grown[VOCABULARY.boi].tobytes() == text[20].tobytes()
    for index in (VOCABULARY.pad, VOCABULARY.bos, VOCABULARY.eoi, *range(VOCABULARY.used, VOCABULARY.size)):
        np.testing.assert_allclose(grown[index].astype(np.float32), mean, rtol=1e-2, atol=1e-3)
    codes = grown[VOCABULARY.vision_offset : VOCABULARY.used].astype(np.float32)
    lengths = np.linalg.norm(codes, axis=1)
    assert lengths.mean() == pytest.approx(np.linalg.norm(text.astype(np.float32), axis=1).mean(), rel=1e-2)
    # One factor for all: what is near in the codebook stays near.
    np.testing.assert_allclose(codes / lengths.mean() * np.linalg.norm(FEATURES, axis=1).mean(), FEATURES, rtol=0.02)


def test_without_codes_the_rest_is_the_mean():
    grown = np.asarray(grow_rows(jnp.asarray(ROWS), VOCABULARY, {}))
    np.testing.assert_allclose(grown[21:], np.broadcast_to(ROWS[:21].mean(axis=0), grown[21:].shape), atol=1e-6)


def test_rows_after_the_text_do_not_count():
    spoiled = np.where(np.arange(len(ROWS))[:, None] < 21, ROWS, 100)
    features = jnp.asarray(FEATURES)
    np.testing.assert_array_equal(grow(jnp.asarray(spoiled), features), grow(jnp.asarray(ROWS), features))
    assert float(mean_norm(jnp.zeros((4, 3)), 2)) == 0


def test_split_over_devices_it_is_the_same():
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 4), ("fsdp", "tensor"))
    placement = NamedSharding(mesh, PartitionSpec("tensor", "fsdp"))
    rows = jax.device_put(ROWS, placement)
    split = jax.jit(grow, out_shardings=placement, donate_argnums=0)(rows, FEATURES)
    assert split.sharding == placement
    whole = np.asarray(grow(jnp.asarray(ROWS), jnp.asarray(FEATURES)))
    assert np.asarray(split)[:21].tobytes() == ROWS[:21].tobytes()
    np.testing.assert_allclose(split, whole, rtol=1e-5, atol=1e-6)

"""Batches: sizes recur, caches stay within the limit, and one that cannot is refused with the numbers."""

import math

import jax
import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.models.cache import make_cache
from nextflow_jax.sampling.batches import BatchShape, batch_shape, cache_bytes, round_up, split
from nextflow_jax.sampling.prompts import make_prompts
from nextflow_jax.sampling.requests import caption, text_to_image
from nextflow_jax.sampling.settings import SamplingSettings
from tests import tiny_models

GUIDED = SamplingSettings(guidance=3.0)
CONFIG = tiny_models.decoder_part().config


def prompts(*requests):
    return make_prompts(requests, tiny_models.bundle())


def test_sizes_recur_and_waste_at_most_a_quarter():
    sizes = [round_up(count) for count in range(1, 2000)]
    assert all(count <= size <= max(count * 1.25, count + 1) for count, size in enumerate(sizes, start=1))
    assert sizes == sorted(sizes) and len(set(sizes)) < 50
    assert round_up(3, 16) == 16 and round_up(17, 16) == 20


def test_only_pictures_need_the_unguided_half():
    telling = caption(tiny_models.picture(0), settings=GUIDED)
    assert not batch_shape(prompts(telling)).guided
    assert batch_shape(prompts(telling, text_to_image("sun", settings=GUIDED))).rows == 4


def test_the_bytes_are_those_of_the_cache_that_is_made():
    shape = BatchShape(3, 16, 40, guided=True)
    arrays = jax.tree.leaves(make_cache(CONFIG, 6, 40))
    assert cache_bytes(CONFIG, shape) == sum(array.nbytes for array in arrays)


def test_batches_keep_order_and_both_limits():
    items = prompts(*[text_to_image("sun", seed=i, settings=GUIDED if i % 3 else None) for i in range(11)])
    limit = cache_bytes(CONFIG, batch_shape(items[:1] * 3)) * 2
    for max_batch in (1, 4, 64):
        batches = split(items, CONFIG, max_batch, limit)
        assert [prompt for batch in batches for prompt in batch] == items
        assert all(len(batch) <= max_batch for batch in batches)
        assert all(cache_bytes(CONFIG, batch_shape(batch)) <= limit for batch in batches)
    assert max(map(len, batches)) > 1, "the limit is used"
    assert len(split(items, CONFIG, 64, 2**40)) == 1
    assert [len(batch) for batch in split(items, CONFIG, 4, 2**40)] == [4, 4, 3]


def test_a_request_too_large_for_the_limit_is_told_its_numbers():
    small, large = prompts(text_to_image("sun"), text_to_image("sun and moon", settings=GUIDED))
    needed = cache_bytes(CONFIG, batch_shape([large]))
    assert math.isclose(needed, 2 * cache_bytes(CONFIG, batch_shape([small])), rel_tol=0.01)
    with pytest.raises(UserError) as error:
        split([small, large], CONFIG, 64, needed - 1)
    message = str(error.value)
    assert f"{needed:,} bytes" in message and f"{needed - 1:,}" in message
    assert "twice because of guidance" in message and "1 pictures of 15" in message and "shorten" in message

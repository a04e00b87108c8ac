"""Runs that are killed and go on, with as many processes as there happen to be: no document is lost or read twice.

Real processes are killed by experiments/bench/data_resume.py.
"""

import collections
import dataclasses
import random

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from nextflow_jax import sequence
from nextflow_jax.data.mixture import MixtureConfig
from nextflow_jax.data.packing import STRATEGIES
from nextflow_jax.data.pipeline import PipelineConfig, make_batches
from nextflow_jax.data.segments import to_segments
from nextflow_jax.data.shards import open_shards

BATCH, WINDOW = 4, 4
MIXED = PipelineConfig(
    row_length=128,
    window_batches=WINDOW,
    packing="compute_budget",
    ranks=2,
    mixture=MixtureConfig((("text_to_image", 2.0), ("edit", 1.0), ("text", 1.0))),
    condition_dropout=0.3,
    task_inversion=0.3,
    last_scale_context=True,
    reader_threads=0,
    prefetch_batches=0,
)
PLAIN = dataclasses.replace(MIXED, mixture=MixtureConfig(), condition_dropout=0.0, task_inversion=0.0)
"""Every document once an epoch, as it is."""
PHASES = st.lists(st.tuples(st.sampled_from((1, 2, 4)), st.integers(1, 4)), min_size=2, max_size=3)
"""(processes, batches until their number changes)."""


def read(config, shards, start, part=0, parts=1, seed=0):
    return make_batches(config, shards, "train", seed, BATCH, start, part, parts)


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def read_in_phases(config, shards, phases, seed):
    """The global batches, put together from the rows of all processes."""
    start = 0
    for parts, count in phases:
        hosts = [read(config, shards, start, part, parts, seed) for part in range(parts)]
        for _ in range(count):
            rows = [next(host) for host in hosts]
            yield {name: np.concatenate([one[name] for one in rows]) for name in rows[0]}
        start += count


@pytest.fixture(scope="module")
def key_of(shard_set, samples):
    """A document's tokens to its number."""
    vocabulary, found = shard_set.manifest.vocabulary, {}
    for number, document in enumerate(samples.documents(70)):
        segments = to_segments(document, samples.family, response_only=False, last_scale_context=True)
        found[sequence.flatten(segments, vocabulary, PLAIN.sequence).tokens.tobytes()] = number
    assert len(found) == 70
    return found


def test_fifty_kills_at_random_moments_change_nothing(shard_set):
    """Threads and what is built ahead differ each time; a batch whose position was not saved is read once more."""
    rng, position = random.Random(0), 0
    alone, expected = read(MIXED, shard_set, 0), []
    for _ in range(50):
        threads = rng.choice((0, 1, 3))
        config = dataclasses.replace(MIXED, reader_threads=threads, prefetch_batches=rng.randrange(threads, 6))
        batches = read(config, open_shards(shard_set.directory), position)
        for _ in range(rng.randrange(3)):
            while len(expected) <= position:
                expected.append(next(alone))
            assert_same(next(batches), expected[position])
            position += 1
        position = max(0, position - rng.randrange(2))
    assert position > 4 * WINDOW


@hypothesis.given(st.integers(0, 2**32 - 1), st.sampled_from(list(STRATEGIES)), PHASES)
@hypothesis.settings(max_examples=4, deadline=None)
def test_any_numbers_of_processes_in_turn_read_the_same_batches(shard_set, seed, packing, phases):
    config = dataclasses.replace(MIXED, packing=packing)
    for ours, theirs in zip(read_in_phases(config, shard_set, phases, seed), read(config, shard_set, 0, seed=seed)):
        assert_same(ours, theirs)


@hypothesis.given(st.integers(0, 2**32 - 1), st.sampled_from(list(STRATEGIES)), PHASES)
@hypothesis.settings(max_examples=4, deadline=None)
def test_every_document_is_read_once_an_epoch_by_some_process(shard_set, key_of, seed, packing, phases):
    """At the end of every window: as often as any other, or once more."""
    config, counts = dataclasses.replace(PLAIN, packing=packing), collections.Counter(dict.fromkeys(range(70), 0))
    for n, batch in enumerate(read_in_phases(config, shard_set, phases, seed), start=1):
        for tokens, document in zip(batch["tokens"], batch["document"]):
            counts.update(key_of[tokens[document == i].tobytes()] for i in range(1, document.max() + 1))
        if n % WINDOW == 0:
            assert max(counts.values()) - min(counts.values()) <= 1

import collections
import json

import numpy as np
import pytest

from nextflow_jax.config import preflight
from nextflow_jax.data.mixture import MixtureConfig, make_stream, resolve_mixture
from nextflow_jax.errors import UserError
from tests.data.made_index import make_index
from tests.goldens import make_mixture


@pytest.fixture(scope="module")
def index(shard_set):
    return shard_set.index("train")


def stream_of(index, weights=(), seed=0, usable=None):
    usable = np.ones(len(index), bool) if usable is None else usable
    return make_stream(MixtureConfig(weights), index, usable, seed)


def test_without_weights_an_epoch_holds_every_usable_document_once(index):
    usable = np.arange(len(index)) % 3 > 0
    stream = stream_of(index, usable=usable)
    size = int(usable.sum())
    epochs = [stream.records(epoch * size, (epoch + 1) * size) for epoch in range(3)]
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), np.flatnonzero(usable))
    assert not np.array_equal(epochs[0], epochs[1])


def test_one_task_gives_its_documents_once_an_epoch(index):
    own = np.flatnonzero(index.task == index.tasks.index("edit"))
    records = stream_of(index, (("edit", 2.0),)).records(0, 3 * len(own))
    assert set(collections.Counter(records.tolist()).items()) == {(int(record), 3) for record in own}


def test_weights_are_the_shares_of_the_stream(index):
    weights = {"text_to_image": 6.0, "text": 3.0, "edit": 1.0}
    records = stream_of(index, tuple(weights.items())).records(20_000, 30_000)
    for task, weight in weights.items():
        assert np.mean(index.task[records] == index.tasks.index(task)) == pytest.approx(weight / 10)
    early = stream_of(index, tuple(weights.items())).records(0, 500)
    assert np.mean(index.task[early] == index.tasks.index("edit")) == pytest.approx(0.1, abs=0.05)


def test_a_task_of_a_mixture_is_used_evenly(index):
    records = stream_of(index, (("text", 1.0), ("edit", 1e-3))).records(0, 40_000)
    counts = np.bincount(records, minlength=len(index))[index.task == index.tasks.index("text")]
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("weights", [(), (("edit", 1.0), ("text", 0.37))])
def test_any_stretch_equals_the_whole(index, weights):
    stream = stream_of(index, weights)
    whole = stream.records(0, 20_500)
    for start, stop in ((0, 0), (5, 17), (9_990, 10_010), (12_345, 20_500)):
        assert np.array_equal(stream.records(start, stop), whole[start:stop])


def test_seeds_differ(index):
    assert not np.array_equal(stream_of(index, seed=0).records(0, 50), stream_of(index, seed=1).records(0, 50))


def test_a_task_that_the_shards_lack_is_refused_with_the_nearest(index):
    with pytest.raises(UserError, match="'text_to_imge' has no document in the shards; did you mean text_to_image"):
        stream_of(index, (("text_to_imge", 1.0),))
    unused = index.task != index.tasks.index("edit")
    with pytest.raises(UserError, match="'edit' has no document"):
        stream_of(index, (("edit", 1.0),), usable=unused)


def test_nothing_usable_is_refused(index):
    with pytest.raises(UserError, match="none of the 70 documents"):
        stream_of(index, usable=np.zeros(len(index), bool))


@pytest.mark.parametrize(
    "weights", [(("a", 0.0),), (("a", -1.0),), (("a", 1.0), ("b", 1e-5)), (("a", 1.0), ("a", 1.0))]
)
def test_weights_that_cannot_be_kept_are_faults(weights):
    with pytest.raises(UserError, match="config.weights"):
        preflight(MixtureConfig(weights))


def test_todays_streams_and_batches_are_those_of_the_golden():
    golden = json.loads(make_mixture.PATH.read_text())
    assert make_mixture.streams() == golden["streams"]
    assert make_mixture.batches() == golden["batches"]


COUNTS = {("text", "wiki"): 400, ("text", "books"): 50, ("text_to_image", "laion"): 900, ("edit", "own"): 100}
LENGTHS = {("text", "wiki"): 30, ("text", "books"): 200, ("text_to_image", "laion"): 100, ("edit", "own"): 60}


@pytest.fixture(scope="module")
def made():
    return make_index(COUNTS, LENGTHS)


def realised(index, config, unit="documents", start=0, stop=200_000):
    """Shares of documents or tokens by entry."""
    usable = np.ones(len(index), bool)
    mixture = resolve_mixture(config, index, usable)
    records = make_stream(config, index, usable, 0).records(start, stop)
    weights = index.plain[records] if unit == "tokens" else None
    counts = np.bincount(mixture.pool_of[records], weights, minlength=len(mixture.pools))
    return {pool.name: count / counts.sum() for pool, count in zip(mixture.pools, counts)}


def test_tokens_follow_weights_of_tokens(made):
    weights = {"text@wiki": 1.0, "text@books": 2.0, "text_to_image": 6.0, "@own": 1.0}
    found = realised(made, MixtureConfig(tuple(weights.items()), unit="tokens"), "tokens")
    assert found == pytest.approx({name: weight / 10 for name, weight in weights.items()}, rel=0.01)


def test_a_long_entry_with_few_tokens_keeps_its_share():
    """1 in 2,000 documents: with blocks of 10,000 positions, rounding alone could cost 10%."""
    index = make_index({("text", ""): 500, ("frames", ""): 30}, {("text", ""): 20, ("frames", ""): 1_000})
    found = realised(index, MixtureConfig((("text", 97.5), ("frames", 2.5)), unit="tokens"), "tokens", stop=400_000)
    assert found["frames"] == pytest.approx(0.025, rel=0.02)


def test_dropped_conditions_and_inversion_are_in_the_mean_lengths(made):
    mixture = resolve_mixture(MixtureConfig((("text", 1.0), ("edit", 1.0)), unit="tokens"), made, made.plain > 0)
    halved = np.where(made.task == made.tasks.index("edit"), made.plain / 2, made.plain)
    text, edit = mixture.document_weights(0, made.plain)
    assert mixture.document_weights(0, halved) == pytest.approx((text, 2 * edit))


@pytest.mark.parametrize("unit", ["documents", "tokens"])
@pytest.mark.parametrize("temperature", [1.0, 3.0, 1e6])
def test_temperature_flattens_sizes_in_the_unit(made, unit, temperature):
    """p proportional to n^(1/T): sizes at 1, uniform where T is large."""
    config = MixtureConfig((("*", 1.0),), unit=unit, temperature=temperature)
    of_task = [made.task == number for number in range(len(made.tasks))]
    sizes = np.asarray([made.plain[own].sum() if unit == "tokens" else own.sum() for own in of_task], np.float64)
    expected = sizes ** (1 / temperature) / (sizes ** (1 / temperature)).sum()
    found = realised(made, config, unit)
    assert [found[task] for task in made.tasks] == pytest.approx(expected.tolist(), rel=0.015)


def test_temperature_alone_mixes_sources_and_weights_scale_it(made):
    alone = realised(made, MixtureConfig(temperature=2.0))
    assert list(alone) == ["@books", "@laion", "@own", "@wiki"]
    twice = realised(made, MixtureConfig((("@own", 2.0), ("@*", 1.0)), temperature=2.0))
    assert twice["@own"] / twice["@wiki"] == pytest.approx(2 * alone["@own"] / alone["@wiki"], rel=0.01)


@pytest.mark.parametrize("unit", ["documents", "tokens"])
def test_a_share_is_of_the_whole_and_weights_divide_the_rest(made, unit):
    config = MixtureConfig((("text_to_image", 3.0), ("edit", 1.0)), unit=unit, shares=(("text", 0.25),))
    expected = {"text_to_image": 0.5625, "edit": 0.1875, "text": 0.25}
    assert realised(made, config, unit) == pytest.approx(expected, rel=0.01)


def test_epochs_are_capped_by_entry(made):
    config = MixtureConfig((("@*", 1.0),), max_epochs=(("@books", 2.5), ("@own", 3.0)))
    usable = np.ones(len(made), bool)
    records = make_stream(config, made, usable, 0).records(0, 5_000)
    counts = np.bincount(made.source[records], minlength=4)
    assert counts[made.sources.index("books")] == 125 and counts[made.sources.index("own")] == 300
    late = made.source[records[-3_000:]]
    assert {made.sources[number] for number in np.unique(late)} == {"wiki", "laion"}
    assert np.mean(late == made.sources.index("wiki")) == pytest.approx(0.5, abs=0.03)


def test_all_exhausted_is_the_end(made):
    config = MixtureConfig(max_epochs=(("all", 2.0),))
    stream = make_stream(config, made, np.ones(len(made), bool), 0)
    assert stream.end == 2 * len(made) == len(stream.records(0, 10_000))


def test_entries_that_share_documents_are_refused(made):
    message = "'text' and '@wiki' share 400 documents; name them apart"
    with pytest.raises(UserError, match=message):
        stream_of(made, (("text", 1.0), ("@wiki", 1.0)))
    changed = MixtureConfig((("text", 1.0),), changes=((10, (("@wiki", 1.0),)),))
    with pytest.raises(UserError, match=message):
        make_stream(changed, made, np.ones(len(made), bool), 0)


def test_an_entry_of_a_source_that_the_shards_lack_is_refused_with_the_nearest(made):
    with pytest.raises(UserError, match="'@wikis' has no document in the shards; did you mean @wiki?"):
        stream_of(made, (("@wikis", 1.0),))
    with pytest.raises(UserError, match="'text@laion' has no document in the shards; did you mean"):
        stream_of(made, (("text@laion", 1.0),))


def test_so_few_documents_that_they_cannot_be_kept_are_refused(made):
    with pytest.raises(UserError, match="'edit' would be less than 1 of 100000 documents from batch 0 on; raise its"):
        make_stream(MixtureConfig((("text", 1.0), ("edit", 1e-6)), unit="tokens"), made, made.plain > 0, 0)


TWO = (("a", 1.0), ("b", 1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": "token"}, "config.unit = 'token': is no unit; did you mean tokens"),
        ({"temperature": -1.0}, "config.temperature = -1.0: must not be negative; use 0.0"),
        ({"changes": ((8, TWO), (8, TWO))}, r"config.changes = \[8, 8\]: their batches must grow"),
        ({"changes": ((0, TWO),)}, r"config.changes = \[0\]: their batches must grow, and begin after 0"),
        ({"changes": ((8, ()),)}, "config.changes.*each change needs weights"),
        ({"changes": ((8, (("a", -1.0),)),)}, r"config.changes.0 = \('a', -1.0\): every weight must be positive"),
        ({"changes": ((8, TWO),), "weights": ()}, "config.weights.*changes need weights before them"),
        ({"shares": (("c", 0.5), ("d", 0.5))}, "config.shares.*must be positive and sum to less than 1"),
        ({"shares": (("c", -0.5),)}, "config.shares.*must be positive and sum to less than 1"),
        ({"shares": (("a", 0.5),)}, "config.shares = 'a': must be one entry, without a weight"),
        ({"shares": (("@*", 0.5),)}, "config.shares = '@[*]': must be one entry"),
        ({"shares": (("c", 0.5),), "weights": ()}, "config.weights.*shares need entries that divide the rest"),
        ({"max_epochs": (("a", 0.0),)}, r"config.max_epochs = \('a', 0.0\): must be positive; leave the entry out"),
        ({"max_epochs": (("c", 1.0),)}, "config.max_epochs = 'c': is no entry of the mixture; known: a, b"),
        ({"max_epochs": (("a", 1.0),), "weights": ()}, "config.max_epochs = 'a': is no entry.*did you mean all"),
    ],
)
def test_rules_between_the_fields_are_faults(change, message):
    with pytest.raises(UserError, match=message):
        preflight(MixtureConfig(**{"weights": TWO, **change}))


def test_every_field_together_is_no_fault():
    changes = ((8, (("a", 1.0),)), (16, (("c@*", 2.0),)))
    config = MixtureConfig((("@*", 1.0), ("*", 1e-9)), "tokens", 0.7, (("d", 0.5),), (("@wiki", 1.0),), changes)
    preflight(config)

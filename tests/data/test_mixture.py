import collections

import numpy as np
import pytest

from nextflow_jax.config import preflight
from nextflow_jax.data.mixture import MixtureConfig, make_stream
from nextflow_jax.errors import UserError


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

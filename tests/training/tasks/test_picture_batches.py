"""Which pictures a batch holds: pure, whole epochs, parts that join."""

import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.training.tasks.picture_batches import PictureBatches

KEYS = [f"p{i}" for i in range(10)]


def test_batches_are_pure_and_parts_join():
    batches = PictureBatches(KEYS, seed=1, batch_size=4)
    for n in (0, 3, 1001):
        whole = batches.keys(n, 0, 1)
        assert whole == PictureBatches(KEYS, seed=1, batch_size=4).keys(n, 0, 1)
        assert whole == batches.keys(n, 0, 2) + batches.keys(n, 1, 2)


def test_no_picture_comes_twice_in_an_epoch_and_all_come_in_the_end():
    batches = PictureBatches(KEYS, seed=1, batch_size=4)
    epochs = [batches.keys(2 * e, 0, 1) + batches.keys(2 * e + 1, 0, 1) for e in range(20)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert {key for epoch in epochs for key in epoch} == set(KEYS)


def test_seeds_differ():
    assert PictureBatches(KEYS, 1, 4).keys(0, 0, 1) != PictureBatches(KEYS, 2, 4).keys(0, 0, 1)


def test_more_rows_than_pictures():
    with pytest.raises(UserError, match="batch_size = 11 is more than the 10 training pictures"):
        PictureBatches(KEYS, 0, 11)

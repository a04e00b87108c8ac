import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nextflow_jax.data.shuffle import shuffled


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 5), st.integers(0, 2**40))
def test_every_epoch_holds_each_number_once(size, epoch, seed):
    entries = shuffled(np.arange(epoch * size, (epoch + 1) * size), size, seed, "x")
    assert np.array_equal(np.sort(entries), np.arange(size))


def test_any_entries_can_be_asked_for_alone():
    whole = shuffled(np.arange(3000), 1000, 0, "x")
    for chosen in (np.asarray([2999, 0, 1000]), np.arange(990, 1010)):
        assert np.array_equal(shuffled(chosen, 1000, 0, "x"), whole[chosen])


def test_orders_differ_by_epoch_and_seed_and_look_random():
    n = 20_000
    orders = [
        shuffled(np.arange(n), n, 0, "x"),
        shuffled(np.arange(n, 2 * n), n, 0, "x"),
        shuffled(np.arange(n), n, 1, "x"),
    ]
    for i, order in enumerate(orders):
        for other in (np.arange(n), np.roll(order, 1), *orders[:i]):
            assert abs(np.corrcoef(order, other)[0, 1]) < 0.03


def test_small_permutations_are_all_equally_likely():
    epochs = 12_000
    orders = shuffled(np.arange(4 * epochs), 4, 0, "x").reshape(epochs, 4)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24 and counts.min() > 400 and counts.max() < 600


def test_following_epochs_are_independent():
    orders = shuffled(np.arange(100 * 500), 100, 0, "x").reshape(500, 100)
    assert abs(np.corrcoef(orders[:-1].ravel(), orders[1:].ravel())[0, 1]) < 0.02

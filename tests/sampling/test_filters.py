"""Temperature, top-k and top-p by their properties, on random logits and on ties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.sampling import filters

ROWS, SIZE = 40, 30
# Compiled whole: operation by operation, the same takes ten times as long.
KEEP, FILTER, SAMPLE = map(jax.jit, (filters.keep_candidates, filters.filter_logits, filters.sample))


def keep_candidates(*arrays):
    return np.asarray(KEEP(*map(jnp.asarray, arrays)))


def filter_logits(*arrays):
    return np.asarray(FILTER(*map(jnp.asarray, arrays)))


def sample(keys, *arrays):
    return [np.asarray(array) for array in SAMPLE(keys, *map(jnp.asarray, arrays))]


@pytest.fixture(scope="module")
def logits():
    generator = np.random.default_rng(0)
    smooth = 3 * generator.standard_normal((ROWS, SIZE))
    smooth[::4] = np.round(smooth[::4])  # rows full of ties
    smooth[1::4, :5] = -np.inf  # ids that are no candidates
    return smooth.astype(np.float32)


def rows_of(value):
    return np.full(ROWS, value, np.float32)


def softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True), dtype=np.float64)
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("k", [1, 2, 7, 25])
def test_top_k_keeps_exactly_the_k_largest(logits, k):
    keep = keep_candidates(logits, rows_of(k), rows_of(1))
    assert (keep.sum(-1) == k).all()
    dropped = np.where(keep, -np.inf, logits).max(-1)
    assert (np.where(keep, logits, np.inf).min(-1) >= dropped).all()


def test_of_equal_logits_the_first_survive():
    keep = keep_candidates(np.zeros((1, 6), np.float32), [4.0], [1.0])
    assert keep.tolist() == [[True] * 4 + [False] * 2]


@pytest.mark.parametrize("p", [0.01, 0.3, 0.8, 0.999])
def test_top_p_keeps_the_fewest_likeliest_of_at_least_that_mass(logits, p):
    keep = keep_candidates(logits, rows_of(0), rows_of(p))
    probabilities = softmax(logits)
    kept = np.where(keep, probabilities, np.inf)
    mass = np.where(keep, probabilities, 0).sum(-1)
    assert (mass >= p - 1e-5).all()
    assert (mass - kept.min(-1) < p).all()
    assert (kept.min(-1) >= np.where(keep, -np.inf, probabilities).max(-1)).all()


def test_top_p_measures_mass_among_the_survivors_of_top_k():
    logits = np.log(np.asarray([[0.4, 0.2, 0.2, 0.2]], np.float32))
    assert keep_candidates(logits, [2.0], [0.6]).sum() == 1
    assert keep_candidates(logits, [0.0], [0.5]).sum() == 2


def test_settings_may_differ_from_row_to_row(logits):
    k, p = np.arange(ROWS, dtype=np.float32) % 5, np.linspace(0.1, 1, ROWS).astype(np.float32)
    together = keep_candidates(logits, k, p)
    alone = [keep_candidates(logits[i : i + 1], k[i : i + 1], p[i : i + 1])[0] for i in range(ROWS)]
    assert np.array_equal(together, np.stack(alone))


def test_many_logits_are_filtered_block_by_block_with_the_same_result(logits, monkeypatch):
    """Seven rows a block: the last one is filled up."""
    k, p = np.arange(ROWS, dtype=np.float32) % 5, np.linspace(0.1, 1, ROWS).astype(np.float32)
    whole = keep_candidates(logits, k, p)
    monkeypatch.setattr(filters, "_CACHED", 7 * SIZE + 1)
    of_blocks = jax.jit(lambda *arrays: filters.keep_candidates(*arrays))  # a function of its own: traced anew
    shape = (5, ROWS // 5)
    loops = [function.lower(logits, k, p).as_text().count("stablehlo.while") for function in (KEEP, of_blocks)]
    assert loops[1] > loops[0]
    assert np.array_equal(of_blocks(logits, k, p), whole)
    several = of_blocks(logits.reshape(*shape, SIZE), k.reshape(shape), p.reshape(shape))
    assert np.array_equal(several, whole.reshape(*shape, SIZE))


def test_neutral_settings_change_nothing(logits):
    assert np.array_equal(filter_logits(logits, rows_of(1), rows_of(0), rows_of(1)), logits)


def test_temperature_divides_before_the_filters(logits):
    hot = filter_logits(logits, rows_of(4), rows_of(0), rows_of(0.9))
    keep = keep_candidates(logits / 4, rows_of(0), rows_of(0.9))
    assert np.allclose(hot, np.where(keep, logits / 4, -np.inf))


@pytest.mark.parametrize("share", [1, 2])
def test_temperature_zero_takes_the_most_likely(logits, share):
    """For all rows, and for every second one."""
    temperature = np.where(np.arange(ROWS) % share, 1.0, 0.0).astype(np.float32)[:, None]
    keys = jax.random.split(jax.random.key(0), ROWS)
    top_k, top_p = rows_of(9)[:, None], rows_of(0.7)[:, None]
    tokens, log_probs = sample(keys, logits[:, None], temperature, top_k, top_p)
    greedy = temperature[:, 0] == 0
    assert np.array_equal(tokens[greedy, 0], logits.argmax(-1)[greedy])
    assert (log_probs[greedy] == 0).all()
    assert (log_probs[~greedy] < 0).any() or share == 1


def test_draws_follow_the_filtered_distribution():
    draws = (1, 20_000)
    logits = np.broadcast_to(np.log(np.float32([0.5, 0.3, 0.15, 0.05])), (*draws, 4))
    settings = (np.full(draws, value, np.float32) for value in (1, 3, 1))
    tokens, log_probs = sample(jax.random.split(jax.random.key(1), 1), logits, *settings)
    shares = np.bincount(tokens[0], minlength=4) / 20_000
    expected = np.asarray([0.5, 0.3, 0.15, 0]) / 0.95
    assert np.allclose(shares, expected, atol=0.015) and shares[3] == 0
    assert np.allclose(log_probs[0], np.log(expected[tokens[0]]), atol=1e-5)


def test_many_positions_are_drawn_in_parts_with_keys_of_their_own():
    """Each part is an ordinary draw; few positions are drawn as if there were no parts."""
    hidden = jax.random.normal(jax.random.key(0), (2, 7, 5))
    keys = jax.random.split(jax.random.key(1), 2)

    def draw(hidden, keys):
        ones = jnp.ones(hidden.shape[:2])
        return SAMPLE(keys, 3 * hidden, ones, 0 * ones, ones)

    in_parts = jax.jit(filters.in_parts, static_argnums=(0, 3))
    alone, _ = in_parts(draw, hidden, keys, 7)
    assert np.array_equal(alone, draw(hidden, keys)[0])
    tokens, log_probs = in_parts(draw, hidden, keys, 3)
    padded = jnp.pad(hidden, ((0, 0), (0, 2), (0, 0)))
    for part in range(3):
        expected = draw(padded[:, 3 * part : 3 * part + 3], jax.vmap(jax.random.fold_in, (0, None))(keys, part))
        at = slice(3 * part, min(3 * part + 3, 7))
        assert np.array_equal(tokens[:, at], expected[0][:, : at.stop - at.start])
        np.testing.assert_allclose(log_probs[:, at], expected[1][:, : at.stop - at.start], atol=1e-6)
    assert tokens.shape == log_probs.shape == (2, 7)

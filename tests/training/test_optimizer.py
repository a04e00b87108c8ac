"""AdamW against optax's own, schedules at their corners, decay mask, freezing, moving average."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer, merge_params

CONFIG = OptimizerConfig(learning_rate=0.1, warmup_steps=4, weight_decay=0.1, clip_norm=0.0)


def make_params():
    key = jax.random.key(0)
    return {
        "dense": {"kernel": jax.random.normal(key, (3, 4)), "bias": jnp.ones(4)},
        "norm": {"scale": jnp.ones(4)},
        "embedding": {"codes": jnp.ones((2, 3)), "connector": {"kernel": jnp.ones((3, 3))}},
    }


def rate(config, step, steps=20):
    return float(learning_rate(config, steps, step))


def test_cosine_warms_up_and_ends_at_its_share():
    config = dataclasses.replace(CONFIG, final_share=0.2)
    assert rate(config, 0) == pytest.approx(0.025)
    assert rate(config, 4) == pytest.approx(0.1)
    assert rate(config, 12) == pytest.approx(0.06)
    assert rate(config, 20) == pytest.approx(0.02)


def test_constant_decays_over_the_last_steps():
    config = dataclasses.replace(CONFIG, schedule="constant", decay_steps=5)
    assert rate(config, 10) == rate(config, 15) == pytest.approx(0.1)
    assert rate(config, 19) == pytest.approx(0.02)
    assert rate(dataclasses.replace(config, decay_steps=0), 19) == pytest.approx(0.1)


def test_updates_equal_optax_adamw():
    params = make_params()
    config = dataclasses.replace(CONFIG, clip_norm=1.0)
    ours = make_optimizer(config, 20, params)
    mask = {
        "dense": {"kernel": True, "bias": False},
        "norm": {"scale": False},
        "embedding": {"codes": False, "connector": {"kernel": True}},
    }
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(lambda s: learning_rate(config, 20, s), 0.9, 0.95, 1e-8, weight_decay=0.1, mask=mask),
    )

    @jax.jit
    def advance(step, params, state, their_params, their_state):
        grads = jax.tree.map(lambda x: jnp.sin(x * 3 + step), params)
        params, state = ours.update(grads, state, params, step)
        updates, their_state = theirs.update(grads, their_state, their_params)
        return params, state, optax.apply_updates(their_params, updates), their_state

    state, their_params, their_state = ours.transform.init(params), params, theirs.init(params)
    for step in range(3):
        params, state, their_params, their_state = advance(jnp.asarray(step), params, state, their_params, their_state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, their_params)


def test_frozen_parameters_have_no_optimizer_state():
    params = make_params()
    optimizer = make_optimizer(dataclasses.replace(CONFIG, freeze=("^embedding/",)), 20, params)
    trained, frozen = optimizer.split(params)
    assert set(trained) == {"dense", "norm"} and set(frozen) == {"embedding"}
    assert len(jax.tree.leaves(optimizer.transform.init(trained))) == 1 + 2 * 3
    merged = merge_params(trained, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(params)


@pytest.mark.parametrize(("freeze", "message"), [(("embeding/",), "matches no parameter"), (("",), "every parameter")])
def test_freezing_is_strict(freeze, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(dataclasses.replace(CONFIG, freeze=freeze), 20, make_params())


def test_moving_average_forgets_the_start_then_is_slow():
    params = {"w": jnp.ones(())}
    optimizer = make_optimizer(dataclasses.replace(CONFIG, ema_decay=0.5), 20, params)
    zero = {"w": jnp.zeros(())}
    assert float(optimizer.average(zero, params, jnp.asarray(0))["w"]) == pytest.approx(0.9)
    assert float(optimizer.average(zero, params, jnp.asarray(1000))["w"]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schedule", "cosin"),
        ("learning_rate", 0.0),
        ("beta2", 1.0),
        ("warmup_steps", -1),
        ("freeze", ("(",)),
    ],
)
def test_faults(field, value):
    faults = list(dataclasses.replace(CONFIG, **{field: value}).faults())
    assert [fault.field for fault in faults] == [field]


def test_rates_scale_the_updates_and_the_first_match_counts():
    params = make_params()
    plain = make_optimizer(CONFIG, 20, params)
    rates = (("^dense/kernel$", 0.5), ("^dense/", 2.0), ("codes", 0.1))
    rated = make_optimizer(dataclasses.replace(CONFIG, rates=rates), 20, params)
    grads = jax.tree.map(lambda leaf: 0.3 * leaf + 0.1, params)
    moved = [
        jax.tree.map(
            np.subtract, optimizer.update(grads, optimizer.transform.init(params), params, jnp.asarray(3))[0], params
        )
        for optimizer in (plain, rated)
    ]
    for (group, name), factor in {
        ("dense", "kernel"): 0.5,
        ("dense", "bias"): 2.0,
        ("norm", "scale"): 1.0,
        ("embedding", "codes"): 0.1,
    }.items():
        np.testing.assert_allclose(moved[1][group][name], factor * moved[0][group][name], rtol=1e-4)


def test_groups_are_clipped_each_on_its_own():
    params = make_params()
    config = dataclasses.replace(CONFIG, clip_norm=1.0, clip_groups=("^embedding/",), weight_decay=0.0)
    grads = jax.tree.map(jnp.ones_like, params)
    huge = {**grads, "embedding": jax.tree.map(lambda leaf: 1e4 * leaf, grads["embedding"])}
    optimizer = make_optimizer(config, 20, params)
    means = [
        optimizer.transform.update(some, optimizer.transform.init(params), params)[1][1].mu for some in (grads, huge)
    ]
    for mean in means:
        for part in ({"embedding": mean["embedding"]}, {name: mean[name] for name in ("dense", "norm")}):
            assert float(optax.tree.norm(part)) == pytest.approx((1 - config.beta1) * 1.0, rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *means)
    small = jax.tree.map(lambda leaf: 1e-3 * leaf, grads)
    state = optimizer.transform.update(small, optimizer.transform.init(params), params)[1]
    jax.tree.map(lambda mu, grad: np.testing.assert_allclose(mu, 0.1 * grad, rtol=1e-5), state[1].mu, small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": (("densse", 0.5),)}, "config.optimizer.rates: 'densse' matches no trained parameter"),
        ({"clip_groups": ("x",)}, "config.optimizer.clip_groups: 'x' matches no"),
        ({"freeze": ("^dense/",), "rates": (("^dense/", 0.5),)}, "matches no trained parameter"),
    ],
)
def test_patterns_that_match_nothing(change, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(dataclasses.replace(CONFIG, **change), 20, make_params())


def test_faults_of_patterns_and_factors():
    config = OptimizerConfig(rates=(("(", 0.0),), clip_groups=("[",), freeze=("*",))
    assert sorted(fault.field for fault in config.faults()) == ["clip_groups", "freeze", "rates", "rates"]


ROWS = (("^dense/kernel$", 1, 1, 3), ("codes", 0, 1, 2), ("codes", 1, 0, 1))


def test_rows_that_are_not_trained_stay_bit_for_bit_and_without_moments():
    """Weight decay and clipping included; the rows that are trained move as if there were nothing else."""
    params = make_params()
    config = dataclasses.replace(CONFIG, train_rows=ROWS, ema_decay=0.9, no_decay=(), clip_norm=0.1)
    optimizer = make_optimizer(config, 20, params)
    inside = {
        "dense": {"kernel": np.broadcast_to([False, True, True, False], (3, 4)), "bias": np.ones(4, bool)},
        "norm": {"scale": np.ones(4, bool)},
        "embedding": {
            "codes": np.asarray([[True, False, False], [True, True, True]]),
            "connector": {"kernel": np.ones((3, 3), bool)},
        },
    }
    masked = make_optimizer(dataclasses.replace(config, train_rows=()), 20, params)
    state, other = optimizer.transform.init(params), masked.transform.init(params)
    new, expected, ema = params, params, params
    for step in range(3):
        grads = jax.tree.map(lambda x: 0.3 * x + 0.1, new)
        new, state = optimizer.update(grads, state, new, jnp.asarray(step))
        alone = jax.tree.map(lambda grad, rows: grad * rows, grads, inside)
        expected, other = masked.update(alone, other, expected, jnp.asarray(step))
        ema = optimizer.average(ema, new, jnp.asarray(step))
    for leaf, before, mean, rows, wanted, *moments in zip(
        *map(jax.tree.leaves, (new, params, ema, inside, expected, state[1].mu, state[1].nu)), strict=True
    ):
        leaf, before, mean = np.asarray(leaf), np.asarray(before), np.asarray(mean)
        np.testing.assert_array_equal(leaf[~rows], before[~rows])
        np.testing.assert_array_equal(mean[~rows], before[~rows])
        assert (leaf[rows] != before[rows]).all() and (mean[rows] != before[rows]).all()
        np.testing.assert_allclose(leaf[rows], np.asarray(wanted)[rows], rtol=1e-6)
        assert all(not np.asarray(moment)[~rows].any() and np.asarray(moment)[rows].all() for moment in moments)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("densse", 0, 0, 1), "'densse' matches no trained parameter"),
        (("^norm/scale$", 1, 0, 1), "outside of norm/scale, which has shape"),
        (("codes", 0, 1, 3), "outside of embedding/codes"),
    ],
)
def test_rows_that_are_not_there(row, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(dataclasses.replace(CONFIG, train_rows=(row,)), 20, make_params())


def test_faults_of_rows():
    config = OptimizerConfig(train_rows=(("a", -1, 0, 1), ("b", 0, 2, 2), ("(", 0, 0, 1)))
    assert [fault.field for fault in config.faults()] == ["train_rows"] * 3

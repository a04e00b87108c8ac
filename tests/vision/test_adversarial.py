"""One loss, two players: each gets the gradient of its own loss; starts, penalties and weights by their formulas."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from nextflow_jax.config import preflight
from nextflow_jax.errors import UserError
from nextflow_jax.vision import adversarial
from nextflow_jax.vision.adversarial import AdversarialConfig, Logits, Players, adversarial_loss, init_players
from nextflow_jax.vision.augment import augment
from nextflow_jax.vision.discriminator import DiscriminatorConfig, discriminator

SMALL = DiscriminatorConfig(width=4, max_width=4, layers=1, groups=2)
CONFIG = AdversarialConfig(weight=0.3, discriminator=SMALL, adaptive=False)
GAME = dataclasses.replace(CONFIG, start_step=3, discriminator_start=2, ramp_steps=4, r1=2.0, r1_interval=3, lecam=0.5)
"""Everything but the adaptive weight; all of it plays at step 6. One program for many tests."""
KEY = jax.random.key(0)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


REAL = random(2, 8, 8, 3)
GENERATOR = {"body": random(3, 6, seed=1), "last": random(6, 3, seed=2)}
"""A tokenizer of two matrices."""


@functools.cache
def fresh(config):
    """Random parameters and the state a run starts with."""
    params, state = meta.unbox(jax.eval_shape(lambda: init_players(config, KEY, REAL)))
    params = jax.tree.map(lambda leaf: 0.5 * random(*leaf.shape, seed=leaf.size), params)
    state = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5 if leaf.ndim else 0, leaf.dtype), state)
    return params, state


def reconstruct(generator):
    return jnp.tanh(REAL @ generator["body"]) @ generator["last"]


def tokenizer_part(fake):
    loss = jnp.mean(jnp.square(fake - REAL)) + 0.2 * jnp.mean(jnp.abs(fake - REAL))
    return loss, {"loss/total": (loss, jnp.ones(()))}


@functools.cache
def compiled(config):
    def loss(generator, params, state, step):
        body = generator["body"]
        fake, pull = jax.vjp(lambda last: reconstruct({"body": body, "last": last}), generator["last"])
        players = Players(params, state, REAL, fake, pull)
        total, metrics, new = adversarial_loss(config, players, tokenizer_part, KEY, step)
        return total, (metrics, new)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def together(config, step, state=None):
    """(loss, (metrics, state)) and gradients of the whole by (generator, discriminator)."""
    params, fresh_state = fresh(config)
    return compiled(config)(GENERATOR, params, fresh_state if state is None else state, jnp.asarray(step))


def judge(params, images):
    return discriminator(SMALL).apply({"params": params}, images)


def mean(pair):
    return float(pair[0] / pair[1])


def close(ours, theirs, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), ours, theirs)


LOSSES = {
    "hinge": (
        lambda real, fake: 0.5 * (jnp.maximum(0, 1 - real).mean() + jnp.maximum(0, 1 + fake).mean()),
        lambda fake: -fake.mean(),
    ),
    "non_saturating": (
        lambda real, fake: -0.5 * (jnp.log(jax.nn.sigmoid(real)).mean() + jnp.log(1 - jax.nn.sigmoid(fake)).mean()),
        lambda fake: -jnp.log(jax.nn.sigmoid(fake)).mean(),
    ),
}


@pytest.mark.parametrize("config", [GAME, dataclasses.replace(CONFIG, loss="non_saturating")], ids=LOSSES)
def test_each_player_gets_the_gradient_of_its_own_loss(config):
    params, _ = fresh(config)
    of_discriminator, of_generator = LOSSES[config.loss]
    fake = reconstruct(GENERATOR)
    real_mean, fake_mean = judge(params, REAL).mean(), judge(params, fake).mean()

    def generator_alone(generator):
        rebuilt = reconstruct(generator)
        return tokenizer_part(rebuilt)[0] + 0.3 * of_generator(judge(params, rebuilt))

    def discriminator_alone(params):
        real_logits, fake_logits = judge(params, REAL), judge(params, fake)
        lecam = jnp.maximum(0, real_logits - fake_mean) ** 2
        lecam = lecam.mean() + (jnp.maximum(0, real_mean - fake_logits) ** 2).mean()
        gradient = jax.grad(lambda x: judge(params, x).mean(axis=(1, 2)).sum())(REAL)
        r1 = (gradient**2).sum() / len(REAL)
        return of_discriminator(real_logits, fake_logits) + config.lecam * lecam + config.r1 / 2 * 3 * r1

    (total, (metrics, _)), (generator_grads, discriminator_grads) = together(config, 6)
    generator_loss, generator_expected = jax.jit(jax.value_and_grad(generator_alone))(GENERATOR)
    discriminator_loss, discriminator_expected = jax.jit(jax.value_and_grad(discriminator_alone))(params)
    close(generator_grads, generator_expected, 1e-4)
    close(discriminator_grads, discriminator_expected, 1e-4)
    close(total, generator_loss + discriminator_loss)
    close(mean(metrics["loss/total"]), tokenizer_part(reconstruct(GENERATOR))[0])
    close(mean(metrics["loss/generator"]), of_generator(judge(params, fake)))
    close(mean(metrics["loss/discriminator"]), of_discriminator(judge(params, REAL), judge(params, fake)))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(discriminator_grads) if leaf.ndim > 1)


def test_before_the_start_nothing_differs_from_a_run_without():
    expected = jax.grad(lambda generator: tokenizer_part(reconstruct(generator))[0])(GENERATOR)
    (total, (metrics, state)), (generator_grads, discriminator_grads) = together(GAME, 0)
    close(generator_grads, expected, 1e-6)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(discriminator_grads))
    close(total, tokenizer_part(reconstruct(GENERATOR))[0], 1e-6)
    assert all(weight == 0 for name, (_, weight) in metrics.items() if name != "loss/total")
    jax.tree.map(np.testing.assert_array_equal, state, fresh(GAME)[1])


def test_what_has_not_started_is_skipped_but_on_cpus():
    config = dataclasses.replace(CONFIG, start_step=3, discriminator_start=2)
    traced = compiled(config).trace(GENERATOR, *fresh(config), jnp.asarray(0))
    lowered = {platform: traced.lower(lowering_platforms=(platform,)) for platform in ("cpu", "tpu")}
    cases = {platform: program.as_text().count("stablehlo.case") for platform, program in lowered.items()}
    # Both have cases on a constant, the platform; only one also asks for the step.
    assert cases["tpu"] > cases["cpu"]
    assert " conditional(" not in lowered["cpu"].compile().as_text()


def test_the_discriminator_may_start_before_the_generator():
    (_, (metrics, state)), (generator_grads, discriminator_grads) = together(GAME, 2)
    close(generator_grads, jax.grad(lambda generator: tokenizer_part(reconstruct(generator))[0])(GENERATOR), 1e-6)
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(discriminator_grads))
    assert metrics["loss/generator"][1] == 0 and metrics["loss/discriminator"][1] == 1
    assert state["logits"]["steps"] == 1


def test_the_adaptive_weight_is_the_ratio_of_gradients_at_the_last_kernel():
    config = dataclasses.replace(CONFIG, adaptive=True)
    params, _ = fresh(config)

    def last_gradient(loss):
        return np.asarray(jax.grad(lambda last: loss(reconstruct({**GENERATOR, "last": last})))(GENERATOR["last"]))

    picture = last_gradient(lambda fake: tokenizer_part(fake)[0])
    generator = last_gradient(lambda fake: -judge(params, fake).mean())
    ratio = np.sqrt((picture**2).sum()) / (np.sqrt((generator**2).sum()) + 1e-4)
    (_, (metrics, _)), (grads, _) = together(config, 0)
    assert mean(metrics["adversarial/adaptive"]) == pytest.approx(ratio, rel=1e-4)
    close(grads["last"], picture + 0.3 * ratio * generator, 1e-4)
    clamped = adversarial.adaptive_weight(jnp.asarray(picture), jnp.asarray(generator), float(ratio) / 2)
    assert clamped == pytest.approx(ratio / 2, rel=1e-4)
    assert np.isfinite(adversarial.adaptive_weight(jnp.ones(3), jnp.zeros(3), 1e6))


def test_the_weight_ramps_up_and_r1_comes_at_its_interval():
    metrics = [together(GAME, step)[0][1][0] for step in range(8)]
    weights = [record["adversarial/weight"][0] for record in metrics]
    np.testing.assert_allclose(weights, 0.3 * np.array([0, 0, 0, 0.25, 0.5, 0.75, 1, 1]), rtol=1e-6)
    assert [record["loss/r1"][1] for record in metrics] == [0, 0, 0, 1, 0, 0, 1, 0]


def numpy_score(weights, x):
    """Two patches' logits of a smooth network."""
    hidden = np.tanh(x.reshape(len(x), 1, 2, -1) @ weights["in"])
    return (hidden @ weights["out"])[..., 0]


def numpy_r1(weights, x):
    """Mean squared length of the gradient of a picture's mean logit, by central differences."""
    steps = np.eye(x[0].size).reshape(-1, *x.shape[1:]) * 1e-5
    gradient = [(numpy_score(weights, x + e) - numpy_score(weights, x - e)).mean(axis=(1, 2)) / 2e-5 for e in steps]
    return np.square(gradient).sum(axis=0).mean()


def test_r1_and_its_gradient_equal_finite_differences():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(3, 2, 4, 3))
    weights = {"in": generator.normal(size=(12, 5)), "out": generator.normal(size=(5, 1))}
    direction = {name: generator.normal(size=array.shape) for name, array in weights.items()}

    def penalty(weights):
        score = lambda y: (jnp.tanh(y.reshape(3, 1, 2, 12) @ weights["in"]) @ weights["out"])[..., 0]  # noqa: E731
        return adversarial.r1_penalty(score, jnp.asarray(x, jnp.float32))

    weights32 = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), weights)
    value, gradient = jax.jit(jax.value_and_grad(penalty))(weights32)
    assert value == pytest.approx(numpy_r1(weights, x), rel=1e-4)
    moved = [{name: weights[name] + sign * direction[name] for name in weights} for sign in (1e-4, -1e-4)]
    slope = (numpy_r1(moved[0], x) - numpy_r1(moved[1], x)) / 2e-4
    assert sum(np.vdot(gradient[name], direction[name]) for name in weights) == pytest.approx(slope, rel=1e-3)


def test_lecam_is_its_formula():
    logits = Logits(random(2, 3, 3, seed=4), random(2, 3, 3, seed=5))
    real, fake = (np.asarray(part, np.float64).ravel() for part in logits)
    expected = np.mean([max(0, r + 0.1) ** 2 for r in real]) + np.mean([max(0, 0.2 - f) ** 2 for f in fake])
    assert adversarial.lecam(logits, jnp.asarray(0.2), jnp.asarray(-0.1)) == pytest.approx(expected, rel=1e-5)


def test_averages_are_means_at_first_and_decay_later():
    averages = {"real": jnp.zeros(()), "fake": jnp.zeros(()), "steps": jnp.zeros((), jnp.int32)}
    values = [3.0, 1.0, 5.0, 2.0]
    seen = []
    for value in values:
        logits = Logits(jnp.full((2, 1, 1), value), jnp.full((2, 1, 1), -value))
        averages = adversarial.average_logits(averages, logits, decay=0.6)
        seen.append(float(averages["real"]))
        assert averages["fake"] == -averages["real"]
    np.testing.assert_allclose(seen, [3, 2, 0.6 * 2 + 0.4 * 5, 0.6 * 3.2 + 0.4 * 2], rtol=1e-6)
    assert averages["steps"] == 4


def test_the_state_moves_from_step_to_step():
    """Spectral norm's vectors and the averages, once a step, on the first step as well."""
    config = dataclasses.replace(CONFIG, discriminator=dataclasses.replace(SMALL, norm="spectral"))
    _, start = fresh(config)
    (_, (_, first)), _ = together(config, 0)
    (_, (_, second)), _ = together(config, 1, first)
    assert second["logits"]["steps"] == 2
    for before, after in ((start, first), (first, second)):
        vectors = (state["discriminator"]["layer_1"]["right"] for state in (before, after))
        assert not np.allclose(*vectors)


def test_accuracy_counts_both_kinds():
    logits = Logits(jnp.asarray([[[1.0, -1.0]]]), jnp.asarray([[[-2.0, -3.0]]]))
    assert adversarial.accuracy(logits) == 0.75


def test_both_kinds_of_pictures_are_augmented_alike():
    config = dataclasses.replace(CONFIG, augment=True)
    params, _ = fresh(config)
    (_, (metrics, _)), grads = together(config, 0)
    real, fake = (judge(params, augment(pictures, KEY)) for pictures in (REAL, reconstruct(GENERATOR)))
    close(mean(metrics["loss/discriminator"]), LOSSES["hinge"][0](real, fake))
    close(mean(metrics["loss/generator"]), LOSSES["hinge"][1](fake))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "hing"}, "did you mean hinge"),
        ({"weight": -1.0}, "config.weight = -1.0: must not be negative"),
        ({"start_step": 3, "discriminator_start": 4}, "use at most 3"),
        ({"r1_interval": 0}, "config.r1_interval"),
        ({"lecam_decay": 1.0}, "config.lecam_decay"),
        ({"discriminator": dataclasses.replace(SMALL, kind="vit")}, "config.discriminator.kind"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(UserError, match=message):
        preflight(dataclasses.replace(CONFIG, **change))

"""Adversarial training of the tokenizer: both players' losses in one scalar whose one gradient is each player's own.

    loss, metrics, state = adversarial_loss(config, players, tokenizer_part, key, step)

The generator (everything but the discriminator) sees the discriminator's parameters as constants, the discriminator
sees the reconstruction as a constant; so the gradient of the sum is, for each player, the gradient of its own loss, and
one `value_and_grad` updates both (simultaneous updates, as in VQGAN's and TokenFlow's training, which alternate on the
same batch). Before its start each part is skipped, not multiplied by zero (but see `_from`).

Losses: hinge (Lim & Ye, arXiv 1705.02894) and non-saturating (Goodfellow et al., arXiv 1406.2661); the adaptive weight
is VQGAN's equation 7 (Esser et al., arXiv 2012.09841); R1 is Mescheder et al.'s (arXiv 1801.04406), computed every few
steps as in StyleGAN2 (arXiv 1912.04958); LeCAM is Tseng et al.'s (arXiv 2104.03310).
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from nextflow_jax.config import Fault, nearest
from nextflow_jax.vision.augment import augment
from nextflow_jax.vision.discriminator import STATE, DiscriminatorConfig, discriminator

Metrics = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]

DISCRIMINATOR = "discriminator"
"""Name of the discriminator's parameters beside the tokenizer's in "params"."""
RATIO_FLOOR = 1e-4
"""Added to the generator's gradient norm in the adaptive weight, as in VQGAN."""


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
    """Whether, against whom and from when the pixel decoder plays."""

    weight: float = 0.0
    """Of the generator's term; 0 = no discriminator exists."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    loss: str = "hinge"
    """"hinge" or "non_saturating"."""
    start_step: int = 0
    """First step at which the generator feels the discriminator."""
    discriminator_start: int = 0
    """First step at which the discriminator is trained; at most `start_step`."""
    ramp_steps: int = 0
    """Steps from `start_step` over which the generator's weight grows linearly to `weight`."""
    adaptive: bool = True
    """Scale the generator's term so that at the decoder's last convolution its gradient is as long as that of the
    picture terms (l1, l2, lpips)."""
    adaptive_max: float = 1e4
    """Largest adaptive factor."""
    r1: float = 0.0
    """Weight of the squared gradient of the discriminator at real pictures, halved; 0 = off."""
    r1_interval: int = 16
    """Steps from one R1 penalty to the next, which then weighs this many times more."""
    lecam: float = 0.0
    """Weight of the LeCAM penalty; 0 = off."""
    lecam_decay: float = 0.99
    """Of the moving averages of real and fake logits."""
    augment: bool = False
    """Show the discriminator randomly shifted and recoloured pictures (differentiably): for small data sets."""

    def faults(self) -> Iterator[Fault]:
        """The rules these settings break."""
        if self.loss not in LOSSES:
            yield Fault("loss", self.loss, "is not known", nearest(self.loss, list(LOSSES)))
        for name in ("weight", "start_step", "discriminator_start", "ramp_steps", "r1", "lecam"):
            if getattr(self, name) < 0:
                yield Fault(name, getattr(self, name), "must not be negative", "use 0")
        for name in ("adaptive_max", "r1_interval"):
            if getattr(self, name) <= 0:
                yield Fault(name, getattr(self, name), "must be positive", "see AdversarialConfig")
        if not 0 <= self.lecam_decay < 1:
            yield Fault("lecam_decay", self.lecam_decay, "must be at least 0 and below 1", "use 0.99")
        if self.discriminator_start > self.start_step:
            rule = f"the discriminator must not start after the generator, at start_step = {self.start_step}"
            yield Fault("discriminator_start", self.discriminator_start, rule, f"use at most {self.start_step}")


class Players(NamedTuple):
    """The discriminator, and the pictures it judges."""

    params: Any
    """The discriminator's parameters."""
    state: Any
    """Collection STATE: see `init_players`."""
    real: Float[Array, "B H W 3"]
    fake: Float[Array, "B H W 3"]
    """The reconstruction, through which the generator's gradient flows."""
    to_last_kernel: Any
    """Pulls a gradient at the reconstruction back to the decoder's last kernel, as `jax.vjp` gives it: a pytree that is
    called and returns (gradient,). Only the adaptive weight needs it; may be None otherwise."""


class Logits(NamedTuple):
    """What the discriminator says of both kinds of pictures."""

    real: Float[Array, "B Y X"]
    fake: Float[Array, "B Y X"]


def hinge_discriminator(logits: Logits) -> Float[Array, ""]:
    """Half of E max(0, 1 - real) + E max(0, 1 + fake)."""
    return 0.5 * (jnp.mean(jax.nn.relu(1 - logits.real)) + jnp.mean(jax.nn.relu(1 + logits.fake)))


def hinge_generator(fake: Float[Array, "B Y X"]) -> Float[Array, ""]:
    """-E fake."""
    return -jnp.mean(fake)


def non_saturating_discriminator(logits: Logits) -> Float[Array, ""]:
    """Half of the cross-entropies of "real" and "fake"."""
    return 0.5 * (jnp.mean(jax.nn.softplus(-logits.real)) + jnp.mean(jax.nn.softplus(logits.fake)))


def non_saturating_generator(fake: Float[Array, "B Y X"]) -> Float[Array, ""]:
    """-E log P(real) of fakes."""
    return jnp.mean(jax.nn.softplus(-fake))


LOSSES: dict[str, tuple[Callable[[Logits], Array], Callable[[Array], Array]]] = {
    "hinge": (hinge_discriminator, hinge_generator),
    "non_saturating": (non_saturating_discriminator, non_saturating_generator),
}
"""Name -> (discriminator's loss, generator's loss)."""


def init_players(config: AdversarialConfig, key: Key[Array, ""], images: Float[Array, "B H W 3"]) -> tuple[Any, Any]:
    """The discriminator's fresh parameters, boxed with logical axis names, and the state beside them.

    The state: "discriminator", what the module carries; "logits", moving averages of real and fake logits and how many
    steps went into them.
    """
    variables = discriminator(config.discriminator).init(key, images)
    zero = jnp.zeros((), jnp.float32)
    logits = {"real": zero, "fake": zero, "steps": jnp.zeros((), jnp.int32)}
    return variables["params"], {"discriminator": variables.get(STATE, {}), "logits": logits}


def join_players(variables: dict[str, Any], params: Any, state: Any) -> dict[str, Any]:
    """A tokenizer's variables with a discriminator's parameters and state (`init_players`) beside them."""
    return {**variables, "params": {**variables["params"], DISCRIMINATOR: params}, STATE: state}


def without_players(variables: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer's own variables; the same when there is no discriminator among them."""
    params = {name: tree for name, tree in variables["params"].items() if name != DISCRIMINATOR}
    return {**{name: tree for name, tree in variables.items() if name != STATE}, "params": params}


def adversarial_loss(
    config: AdversarialConfig,
    players: Players,
    tokenizer_part: Callable[[Float[Array, "B H W 3"]], tuple[Float[Array, ""], Metrics]],
    key: Key[Array, ""],
    step: Int[Array, ""],
) -> tuple[Float[Array, ""], Metrics, Any]:
    """The sum of the tokenizer's loss, the generator's weighted term and the discriminator's loss.

    Args:
      config: settings; `weight` positive.
      players: the discriminator and its pictures.
      tokenizer_part: reconstruction -> (loss, metrics) of everything that is not adversarial.
      key: this step's randomness, for augmentation.
      step: int32, counted from 0.

    Returns:
      (loss, metrics, next state). Metrics are those of `tokenizer_part` and the players' own, (sum, weight) pairs that
      weigh nothing while their part has not started.
    """
    # The losses' gradients at the reconstruction are needed as values by the adaptive weight. They are taken once, at a
    # constant, and joined to the reconstruction again: no network is differentiated twice.
    fixed = jax.lax.stop_gradient(players.fake)
    (loss, metrics), picture_gradient = jax.value_and_grad(tokenizer_part, has_aux=True)(fixed)
    generator = _generator(config, players, jax.lax.stop_gradient(picture_gradient), key, step)
    gradient = picture_gradient + generator.weight * generator.gradient
    loss = with_gradient(loss + generator.weight * generator.value, gradient, players.fake)
    active = (step >= config.start_step).astype(jnp.float32)
    metrics["loss/generator"] = active * generator.value, active
    metrics["adversarial/weight"] = active * generator.weight, active
    metrics["adversarial/adaptive"] = active * generator.adaptive, active
    other, of_discriminator, state = _discriminator(config, players, key, step)
    return loss + other, metrics | of_discriminator, state


def with_gradient(value: Float[Array, ""], gradient: Float[Array, "*B"], at: Float[Array, "*B"]) -> Float[Array, ""]:
    """`value` with `gradient` as its derivative by `at`, whatever else it depends on."""
    return value + jnp.vdot(jax.lax.stop_gradient(gradient), at - jax.lax.stop_gradient(at))


def adaptive_weight(picture: Float[Array, "*K"], generator: Float[Array, "*K"], most: float) -> Float[Array, ""]:
    """How many times longer the picture terms' gradient at the last kernel is than the generator's, at most `most`."""
    ratio = jnp.linalg.norm(picture.ravel()) / (jnp.linalg.norm(generator.ravel()) + RATIO_FLOOR)
    return jnp.minimum(ratio, most)


class Generator(NamedTuple):
    """The generator's term as constants."""

    value: Float[Array, ""]
    gradient: Float[Array, "B H W 3"]
    """By the reconstruction."""
    weight: Float[Array, ""]
    """What value and gradient are multiplied by: weight x ramp x adaptive."""
    adaptive: Float[Array, ""]


def _generator(
    config: AdversarialConfig, players: Players, picture_gradient: Array, key: Array, step: Array
) -> Generator:
    params, state, _, fake, to_last_kernel = jax.lax.stop_gradient(players)

    def play() -> Generator:
        def term(fake: Array) -> Array:
            return LOSSES[config.loss][1](_judge(config, params, state, fake, key))

        value, gradient = jax.value_and_grad(term)(fake)
        adaptive = jnp.ones((), jnp.float32)
        if config.adaptive:
            (ours,), (theirs,) = to_last_kernel(picture_gradient), to_last_kernel(gradient)
            adaptive = adaptive_weight(ours, theirs, config.adaptive_max)
        ramp = jnp.clip((step - config.start_step + 1) / max(1, config.ramp_steps), 0.0, 1.0)
        return Generator(value, gradient, config.weight * ramp * adaptive, adaptive)

    def wait() -> Generator:
        zero = jnp.zeros((), jnp.float32)
        return Generator(zero, jnp.zeros_like(fake), zero, zero)

    return jax.lax.stop_gradient(_from(step >= config.start_step, play, wait))


def _discriminator(
    config: AdversarialConfig, players: Players, key: Array, step: Array
) -> tuple[Float[Array, ""], Metrics, Any]:
    """The discriminator's loss with its penalties, metrics and next state."""
    active = step >= config.discriminator_start
    real, fake = jax.lax.stop_gradient((players.real, players.fake))

    def learn() -> tuple[Array, Metrics, Any]:
        return _learn(config, players.params, players.state, real, fake, key, step)

    def wait() -> tuple[Array, Metrics, Any]:
        zeros = lambda shape: jnp.zeros(shape.shape, shape.dtype)  # noqa: E731
        loss, metrics, _ = jax.tree.map(zeros, jax.eval_shape(learn))
        return loss, metrics, players.state

    return _from(active, learn, wait)


def _from(started: Bool[Array, ""], act: Callable[[], Any], wait: Callable[[], Any]) -> Any:
    """`act()` once `started`, before that `wait()`; on CPUs both are computed.

    XLA's CPU backend runs convolutions inside a conditional about ten times slower (a discriminator's gradient: 0.79
    in place of 0.08 s), which costs more than a discriminator that plays for nothing before its start.
    """

    def choose(started: Bool[Array, ""]) -> Any:
        return jax.tree.map(lambda acted, waited: jnp.where(started, acted, waited), act(), wait())

    def skip(started: Bool[Array, ""]) -> Any:
        return jax.lax.cond(started, act, wait)

    return jax.lax.platform_dependent(started, cpu=choose, default=skip)


def _learn(
    config: AdversarialConfig, params: Any, state: Any, real: Array, fake: Array, key: Array, step: Array
) -> tuple[Float[Array, ""], Metrics, Any]:
    real_logits, carried = _judge_and_update(config, params, state, real, key)
    logits = Logits(real_logits, _judge(config, params, state, fake, key))
    one = jnp.ones((), jnp.float32)
    base = LOSSES[config.loss][0](logits)
    averages = average_logits(state["logits"], logits, config.lecam_decay)
    metrics = {
        "loss/discriminator": (base, one),
        "adversarial/logit_real": (jnp.mean(logits.real), one),
        "adversarial/logit_fake": (jnp.mean(logits.fake), one),
        "adversarial/accuracy": (accuracy(logits), one),
    }
    loss = base
    if config.lecam:
        penalty = lecam(logits, averages["real"], averages["fake"])
        loss = loss + config.lecam * penalty
        metrics["loss/lecam"] = penalty, one
    if config.r1:
        due = step % config.r1_interval == 0
        penalty = _r1_when(due, config, params, state, real, key)
        loss = loss + 0.5 * config.r1 * config.r1_interval * penalty
        metrics["loss/r1"] = penalty, due.astype(jnp.float32)
    return loss, jax.lax.stop_gradient(metrics), {"discriminator": carried, "logits": averages}


def accuracy(logits: Logits) -> Float[Array, ""]:
    """Share of patches told apart, half of them real."""
    return 0.5 * (jnp.mean(logits.real > 0) + jnp.mean(logits.fake < 0))


def average_logits(averages: dict[str, Array], logits: Logits, decay: float) -> dict[str, Array]:
    """The next moving averages of the mean logits; plain means at first, to forget the zeros they start as."""
    steps = averages["steps"]
    keep = jnp.minimum(decay, steps / (steps + 1))
    means = jax.lax.stop_gradient({name: jnp.mean(values) for name, values in logits._asdict().items()})
    moved = {name: keep * averages[name] + (1 - keep) * mean for name, mean in means.items()}
    return {**moved, "steps": steps + 1}


def lecam(logits: Logits, real_average: Float[Array, ""], fake_average: Float[Array, ""]) -> Float[Array, ""]:
    """E max(0, real - average fake)^2 + E max(0, average real - fake)^2."""
    real_part = jnp.mean(jnp.square(jax.nn.relu(logits.real - fake_average)))
    return real_part + jnp.mean(jnp.square(jax.nn.relu(real_average - logits.fake)))


def r1_penalty(
    score: Callable[[Float[Array, "B H W 3"]], Float[Array, "B Y X"]], real: Float[Array, "B H W 3"]
) -> Float[Array, ""]:
    """The mean over pictures of the squared length of the gradient of a picture's mean logit by its pixels."""

    def total(real: Array) -> Array:
        return jnp.sum(jnp.mean(score(real), axis=(1, 2)))

    return jnp.mean(jnp.sum(jnp.square(jax.grad(total)(real)), axis=(1, 2, 3)))


def _r1_when(
    due: Bool[Array, ""], config: AdversarialConfig, params: Any, state: Any, real: Array, key: Array
) -> Array:
    def compute() -> Array:
        return r1_penalty(lambda pictures: _judge(config, params, state, pictures, key), real)

    return jax.lax.cond(due, compute, lambda: jnp.zeros((), jnp.float32))


def _judge(config: AdversarialConfig, params: Any, state: Any, images: Array, key: Array) -> Array:
    images = augment(images, key) if config.augment else images
    return discriminator(config.discriminator).apply({"params": params, STATE: state["discriminator"]}, images)


def _judge_and_update(
    config: AdversarialConfig, params: Any, state: Any, images: Array, key: Array
) -> tuple[Array, Any]:
    images = augment(images, key) if config.augment else images
    variables = {"params": params, STATE: state["discriminator"]}
    logits, new = discriminator(config.discriminator).apply(variables, images, update=True, mutable=[STATE])
    return logits, new.get(STATE, {})

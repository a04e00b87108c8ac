"""Steps whose loss or gradient leaps above the recent ones: the rule, and the running means that it compares with."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nextflow_jax.config import Fault

Recent = dict[str, jax.Array]
"""What the state carries for the rule, float32 scalars: "steps" that were good, and the running means of their "loss"
and "grad_norm"; empty where the rule is off."""


@dataclasses.dataclass(frozen=True)
class SpikeConfig:
    """A step is a spike, and changes nothing, when a figure of it is more than so many times its recent mean."""

    grad_norm: float = 0.0
    """Times the mean gradient norm (before clipping); 0 = not looked at."""
    loss: float = 0.0
    """Times the mean loss, for losses that are positive; 0 = not looked at."""
    window: int = 100
    """Good steps that the running means go back, about; before so many were seen, nothing is a spike."""

    @property
    def on(self) -> bool:
        """Whether there is a rule."""
        return bool(self.grad_norm or self.loss)

    def faults(self) -> Iterator[Fault]:
        """The rules these settings break."""
        for name in ("grad_norm", "loss"):
            if getattr(self, name) and getattr(self, name) <= 1:
                yield Fault(
                    name, getattr(self, name), "would call every other step a spike", "use e.g. 5, or 0 for none"
                )
        if self.window < 1:
            yield Fault("window", self.window, "must be positive", "use at least 1")


NO_RULE = SpikeConfig()


def nothing_seen(config: SpikeConfig) -> Recent:
    """The running means before the first step."""
    return {name: jnp.zeros((), jnp.float32) for name in ("grad_norm", "loss", "steps")} if config.on else {}


def is_spike(
    config: SpikeConfig, recent: Recent, loss: Float[Array, ""], grad_norm: Float[Array, ""]
) -> Bool[Array, ""]:
    """Whether a step with these figures is one; false for figures that are not numbers."""
    spike = jnp.zeros((), bool)
    for name, value in {"loss": loss, "grad_norm": grad_norm}.items():
        factor = getattr(config, name)
        if factor:
            spike |= value > factor * recent[name]
    return spike & (recent["steps"] >= config.window) if config.on else spike


def with_step(config: SpikeConfig, recent: Recent, loss: Float[Array, ""], grad_norm: Float[Array, ""]) -> Recent:
    """The running means after a good step: plain means at first, then exponential ones."""
    if not config.on:
        return recent
    steps = recent["steps"] + 1
    share = 1 / jnp.minimum(steps, config.window)
    new = {"loss": loss, "grad_norm": grad_norm}
    means = {name: recent[name] + share * (value.astype(jnp.float32) - recent[name]) for name, value in new.items()}
    # Counting on would lose ones to rounding after 2^24 steps.
    return {**means, "steps": jnp.minimum(steps, config.window)}

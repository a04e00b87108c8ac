"""A small task for tests of the loop: a two-layer regression with a running statistic as a second collection."""

import dataclasses
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax.training.settings import Experiment

WIDTH = 8


class Regression(nn.Module):
    """[B, 4] -> [B, 2]."""

    @nn.compact
    def __call__(self, x):
        def dense(features, name, axes):
            kernel = nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes)
            bias = nn.with_logical_partitioning(nn.initializers.zeros, axes[1:])
            return nn.Dense(features, kernel_init=kernel, bias_init=bias, name=name)

        x = nn.gelu(dense(WIDTH, "first", ("embed", "mlp"))(x))
        mean = self.variable("running", "mean", jnp.zeros, (WIDTH,))
        if self.is_mutable_collection("running") and not self.is_initializing():
            mean.value = 0.9 * mean.value + 0.1 * jnp.mean(x, axis=0)
        return dense(2, "second", ("mlp", None))(x - mean.value)


@dataclasses.dataclass
class ToyTask:
    """See nextflow_jax.training.task.Task. `poison` = batch index whose targets are NaN."""

    batch_size: int = 8
    seed: int = 0
    noise: float = 0.1
    poison: int = -1
    seconds: float = 0.0
    fingerprint: str = "toy"

    def init(self, key):
        return Regression().init(key, jnp.zeros((self.batch_size, 4)))

    def after_init(self, variables):
        return variables

    def constants(self):
        return {"half": np.full((), 0.5, np.float32)}

    def loss(self, params, variables, constants, batch, key, step):
        x = batch["x"] + self.noise * jax.random.normal(key, batch["x"].shape)
        y, new = Regression().apply({"params": params, **variables}, x, mutable=["running"])
        squares = jnp.square(y - batch["y"])
        weight = jnp.asarray(float(squares.size))
        return 2 * constants["half"] * jnp.mean(squares), ({"squares": (jnp.sum(squares), weight)}, dict(new))

    def loss_weight(self, batch):
        return jnp.asarray(float(batch["x"].shape[0]))

    def batch_specs(self):
        spec = {
            "x": jax.ShapeDtypeStruct((self.batch_size, 4), jnp.float32),
            "y": jax.ShapeDtypeStruct((self.batch_size, 2), jnp.float32),
        }
        return (spec,)

    def data_statistics(self, first, stop):
        return {"first": float(first), "batches": float(stop - first)}

    def tokens_per_step(self, spec):
        return self.batch_size

    def batch_axes(self):
        return ("batch",)

    def batches(self, start, part, num_parts):
        rows = self.batch_size // num_parts
        while True:
            generator = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, start]))
            x = generator.standard_normal((self.batch_size, 4), dtype=np.float32)
            y = np.stack([x[:, 0] * x[:, 1], x[:, 2]], axis=1)
            if start == self.poison:
                y = np.full_like(y, np.nan)
            mine = slice(part * rows, (part + 1) * rows)
            if self.seconds:
                time.sleep(self.seconds)
            yield {"x": x[mine], "y": y[mine]}
            start += 1

    def documents(self, batch):
        return [f"{batch}/{row}" for row in range(self.batch_size)]

    def describe(self):
        return {"data": self.fingerprint}

    def save_artifacts(self, workdir):
        (workdir / "artifact.txt").write_text("toy")

    def flops_per_step(self, params, spec):
        return 6.0 * self.batch_size * sum(leaf.size for leaf in jax.tree.leaves(params))


def toy_experiment(**train):
    """An Experiment for ToyTask; keywords change its TrainConfig."""
    base = Experiment(kind="toy", name="toy")
    train = {"batch_size": 8, "log_every": 4, "checkpoint_every": 100, "tensorboard": False, **train}
    optimizer = dataclasses.replace(base.optimizer, learning_rate=1e-2, warmup_steps=2, ema_decay=0.9)
    return dataclasses.replace(base, train=dataclasses.replace(base.train, **train), optimizer=optimizer)

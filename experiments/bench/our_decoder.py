"""Our side of experiments/bench/against_torch.py: the training step and the sampling phases that every run has."""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from experiments.bench.decoder_sizes import AdamW, Draw, Sizes, prompts, repeat, serve, training_codes
from nextflow_jax import compile_cache, sharding
from nextflow_jax.models.decoder import Decoder, DecoderConfig, DecoderInputs
from nextflow_jax.sampling.phases import Draws, Weights, make_phases
from nextflow_jax.scales import ScaleSchedule, make_schedule
from nextflow_jax.sequence import ImageSegment, SequenceConfig, TextSegment, flatten
from nextflow_jax.training.experiment import DecoderExperiment
from nextflow_jax.training.optimizer import OptimizerConfig
from nextflow_jax.training.settings import TrainConfig
from nextflow_jax.training.state import TrainState, init_state, make_layout
from nextflow_jax.training.step import CompiledStep, compile_step
from nextflow_jax.training.task import Variables
from nextflow_jax.training.tasks.decoder import DecoderTask
from nextflow_jax.vocabulary import Vocabulary

STEPS = 1_000_000
"""Length of the run that the schedule of the learning rate is made for: it stays constant."""


def decoder_config(sizes: Sizes) -> DecoderConfig:
    """The decoder of these sizes; activations are computed again, as in the preset for CPUs ("small")."""
    return DecoderConfig(
        vocabulary=Vocabulary(sizes.text_size, sizes.codes, pad_multiple=1),
        code_dim=sizes.code_dim,
        max_scales=len(sizes.ladder),
        layers=sizes.layers,
        width=sizes.width,
        heads=sizes.heads,
        kv_heads=sizes.heads,
        head_size=sizes.head_size,
        mlp_width=sizes.mlp_width,
        rope_sections=sizes.rope_sections,
        rope_base=sizes.rope_base,
        norm_eps=sizes.norm_eps,
        remat="dots",
    )


def schedule_of(sizes: Sizes) -> ScaleSchedule:
    """The schedule whose codes a row holds."""
    return make_schedule((sizes.ladder[-1],) * 2, sizes.ladder)


def training_batch(sizes: Sizes) -> dict[str, np.ndarray]:
    """The pictures' rows as the pipeline lays them out: <boi> and all scales, without the closing <eoi>."""
    vocabulary, layout = decoder_config(sizes).vocabulary, SequenceConfig(rope_extent=sizes.rope_extent)
    rows = []
    for codes in training_codes(sizes):
        segment = ImageSegment(schedule_of(sizes), codes, codes)
        row = flatten([segment], vocabulary, layout, bos=False, eos=False).arrays()
        rows.append({name: array[: sizes.tokens] for name, array in row.items()})
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


class BatchTask(DecoderTask):
    """The decoder's task on one given batch in place of shards: its loss, with the metrics that every run logs."""

    def __init__(self, config: DecoderConfig, batch: dict[str, np.ndarray]) -> None:
        rows = len(batch["tokens"])
        self._experiment = DecoderExperiment(model=config, train=TrainConfig(batch_size=rows))
        self._model = Decoder(config)
        self._spec = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in batch.items()}

    def after_init(self, variables: Variables) -> Variables:
        """Unchanged: there is no tokenizer whose codebook to take."""
        return variables


class OurSide:
    """See `decoder_sizes.Side`."""

    def __init__(self, options: argparse.Namespace, sizes: Sizes) -> None:
        compile_cache.enable()
        self._sizes, self._config, self._batch = sizes, decoder_config(sizes), training_batch(sizes)
        self._task = BatchTask(self._config, self._batch)
        mesh, rules = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1]), sharding.make_rules()
        settings = AdamW()
        optimizer = OptimizerConfig(
            learning_rate=settings.learning_rate,
            schedule="constant",
            warmup_steps=0,
            beta1=settings.beta1,
            beta2=settings.beta2,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            clip_norm=settings.clip_norm,
        )
        self._layout = make_layout(self._task, optimizer, STEPS, mesh, rules)
        self._compiled: CompiledStep | None = None
        self._state = self._fresh_state()
        # The training state is donated: sampling keeps a copy of its first values.
        self._weights = Weights({"params": jax.tree.map(jnp.copy, self._state.params)}, None)
        self._phases = make_phases(self._config, SequenceConfig(rope_extent=sizes.rope_extent))

    def describe(self) -> dict[str, Any]:
        """Versions, threads, parameters."""
        count = sum(leaf.size for leaf in jax.tree.leaves(self._state.params))
        return {"jax": jax.__version__, "parameters": count}

    def save(self, path: str) -> None:
        """Writes the weights for the other side, "a/b/c" -> array, and trains on from them."""
        self._state = self._fresh_state()
        np.savez(path, **{name: np.asarray(x) for name, x in _flat(self._state.params).items()})

    def logits(self, path: str) -> None:
        """Writes the training batch's logits."""
        decoder = Decoder(self._config)
        logits = jax.jit(lambda variables, inputs: decoder.apply(variables, inputs)[0])
        np.savez(path, logits=logits(self._weights.decoder, DecoderInputs.of(self._batch)))

    def losses(self, steps: int) -> list[float]:
        """The loss before each of some training steps."""
        return [self._step() for _ in range(steps)]

    def codes(self, draw: Draw) -> list[list[int]]:
        """The codes of one sampled batch."""
        return self._sample(draw).tolist()

    def train(self, seconds: float) -> list[float]:
        """See `Side`."""
        return repeat(self._step, seconds)

    def sample(self, draw: Draw, seconds: float) -> list[float]:
        """See `Side`."""
        return repeat(lambda: self._sample(draw), seconds)

    def _fresh_state(self) -> TrainState:
        """Random weights; gains and biases too, so that a forgotten one shows."""

        def spread(path: Any, leaf: jax.Array) -> jax.Array:
            if path[-1].key in ("scale", "bias", "scale_count_gain"):
                noise = np.random.default_rng(0).normal(size=leaf.shape)
                return leaf + jnp.asarray(0.05 * noise, leaf.dtype)
            return leaf

        return init_state(self._task, self._layout, 0, lambda tree: jax.tree_util.tree_map_with_path(spread, tree))

    def _step(self) -> float:
        if self._compiled is None:
            self._compiled = compile_step(self._task, self._layout, 0, *self._task.batch_specs())
        rows = sharding.batch_sharding(self._layout.mesh, self._layout.rules)
        self._state, metrics = self._compiled.call(self._state, {}, jax.device_put(self._batch, rows))
        total, weight = metrics.fetch()["loss"]
        return float(total) / float(weight)

    def _sample(self, draw: Draw) -> np.ndarray:
        schedule = schedule_of(self._sizes)
        inputs, length, time = self._prompt_inputs(draw)
        rows = self._phases.read_prompt(
            self._weights, inputs, length, time, slots=self._sizes.prompt + schedule.num_tokens, guided=draw.guided
        )
        settings = ((draw.guidance, draw.temperature, draw.top_k, draw.top_p)[i] for i in range(4))
        columns = (np.full((draw.batch, schedule.num_scales), value, np.float32) for value in settings)
        draws = Draws(jax.random.split(jax.random.key(0), draw.batch), *columns)
        _, codes, _ = self._phases.draw_image(self._weights, rows, draws, np.ones(draw.batch, bool), schedule)
        return np.asarray(codes)

    def _prompt_inputs(self, draw: Draw) -> tuple[DecoderInputs, np.ndarray, np.ndarray]:
        guided, unguided = prompts(self._sizes, draw.batch)
        texts = np.concatenate([guided, unguided]) if draw.guided else guided
        layout = SequenceConfig(rope_extent=self._sizes.rope_extent)
        rows = [flatten([TextSegment(text[1:])], self._config.vocabulary, layout, eos=False).arrays() for text in texts]
        inputs = DecoderInputs.of({name: np.stack([row[name] for row in rows]) for name in rows[0]})
        length = np.full(len(rows), self._sizes.prompt)
        return inputs, length.astype(np.int32), length.astype(np.float32)


def _flat(params: Any) -> dict[str, jax.Array]:
    return traverse_util.flatten_dict(params, sep="/")


if __name__ == "__main__":
    serve(OurSide)

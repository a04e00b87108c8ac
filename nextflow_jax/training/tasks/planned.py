"""Tasks without their files: shapes of models and batches from the experiment alone, to trace and compile.

Whoever compiles ahead of time has no shards, pictures or weights at hand. What the experiment cannot say is taken as
`assumed` of `PlannedTask` tells; what it must say and does not is a UserError.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from nextflow_jax.data.image_files import Size
from nextflow_jax.errors import UserError
from nextflow_jax.models.decoder import Decoder
from nextflow_jax.sequence import TextSegment, flatten, pack_row
from nextflow_jax.training.checkpoint import checkpoint_steps
from nextflow_jax.training.experiment import (
    FROM_SHARDS,
    ContrastiveExperiment,
    DecoderExperiment,
    TokenizerExperiment,
)
from nextflow_jax.training.settings import Experiment
from nextflow_jax.training.task import BatchSpec, Task
from nextflow_jax.training.tasks.contrastive import ContrastiveTask
from nextflow_jax.training.tasks.decoder import DecoderTask
from nextflow_jax.training.tasks.tokenizer import Teacher, TokenizerTask, load_teacher
from nextflow_jax.vision.dual_encoder import DualEncoder, DualEncoderConfig
from nextflow_jax.vision.lpips import lpips_shapes
from nextflow_jax.vision.tokenizer import VisionTokenizer
from nextflow_jax.vision.vit import ViT


class PlannedTask(NamedTuple):
    """A task that can be traced, and what was assumed of its missing inputs."""

    task: Task
    assumed: dict[str, str]
    """Input -> what it was taken for."""


def plan_task(experiment: Experiment) -> PlannedTask:
    """The task of an experiment, without opening any of its inputs but a teacher that is there.

    Args:
      experiment: `faults()` checked, but for the sizes that its inputs decide.

    Raises:
      UserError: a size that its inputs decide is not in the experiment; says how to set it.
    """
    return PLANNED[experiment.kind](experiment)


class _PlannedDecoder(DecoderTask):
    def __init__(self, experiment: DecoderExperiment) -> None:
        self._experiment = experiment
        self._model = Decoder(experiment.model)
        self._spec = self._make_spec()

    def _make_spec(self) -> BatchSpec:
        experiment, vocabulary = self._experiment, self._experiment.model.vocabulary
        sequence = experiment.pipeline.sequence
        # Features are made from codes by the tokenizer, which is not at hand; a row without positions needs none.
        plain = dataclasses.replace(sequence, inputs="residual")
        nothing = flatten([TextSegment(np.empty(0, np.int32))], vocabulary, plain, bos=False, eos=False)
        arrays = pack_row([nothing], experiment.pipeline.row_length, vocabulary).arrays()
        if sequence.inputs == "accumulated":
            arrays["vision_features"] = np.zeros(
                (experiment.pipeline.row_length, experiment.model.code_dim), np.float32
            )
        rows = experiment.train.batch_size
        return {name: jax.ShapeDtypeStruct((rows, *array.shape), array.dtype) for name, array in arrays.items()}


class _Sizes(NamedTuple):
    """In place of the order of the pictures."""

    sizes: tuple[Size, ...]


class _PlannedTokenizer(TokenizerTask):
    def __init__(self, experiment: TokenizerExperiment, teacher: Teacher | None) -> None:
        self._experiment = experiment
        self._model = VisionTokenizer(experiment.model)
        self._order = _Sizes(experiment.model.family.sizes if experiment.buckets else (experiment.pictures.size,))
        self._teacher = teacher
        self._lpips = lpips_shapes() if experiment.loss.lpips else None

    def constants(self) -> dict[str, Any]:
        """Zeros; nobody but a tracer may ask for them."""
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), super().constants())


class _PlannedContrastive(ContrastiveTask):
    def __init__(self, experiment: ContrastiveExperiment) -> None:
        self._experiment = experiment
        self._batch_size = experiment.train.batch_size
        self._model = DualEncoder(experiment.model, experiment.text.vocab_size)


def require_sizes(experiment: DecoderExperiment) -> None:
    """Raises a UserError that says how to set the sizes of the decoder that are left to shards."""
    missing = [name for name, size in experiment.input_sizes().items() if size == FROM_SHARDS]
    if missing:
        flags = " ".join(f"--config.model.{name}=N" for name in missing)
        raise UserError(
            f"config.model.{', '.join(missing)} = {FROM_SHARDS}: taken from shards, which are not at hand; give the "
            f"sizes of their tokenizers: {flags}"
        )


def _plan_decoder(experiment: DecoderExperiment) -> PlannedTask:
    require_sizes(experiment)
    return PlannedTask(_PlannedDecoder(experiment), {})


def _plan_tokenizer(experiment: TokenizerExperiment) -> PlannedTask:
    if not (experiment.teacher and experiment.loss.needs_teacher):
        return PlannedTask(_PlannedTokenizer(experiment, None), {})
    if checkpoint_steps(experiment.teacher):
        return PlannedTask(_PlannedTokenizer(experiment, load_teacher(experiment)), {})
    config = DualEncoderConfig(vit=experiment.model.vit, dtype=experiment.model.dtype)
    tower = jax.eval_shape(
        lambda key: ViT(config.vit, jnp.float32).init(key, _one_picture(experiment)), jax.random.key(0)
    )
    teacher = Teacher(config, {"vision": meta.unbox(tower)["params"]}, fingerprint="")
    assumed = {"teacher": "its vision tower has the shape of the semantic encoder (model.vit)"}
    return PlannedTask(_PlannedTokenizer(experiment, teacher), assumed)


def _one_picture(experiment: TokenizerExperiment) -> jax.Array:
    return jnp.zeros((1, *experiment.pictures.size, 3))


def _plan_contrastive(experiment: ContrastiveExperiment) -> PlannedTask:
    assumed = {"text": f"its tokenizer has text.vocab_size = {experiment.text.vocab_size} ids"}
    return PlannedTask(_PlannedContrastive(experiment), assumed)


PLANNED: dict[str, Callable[[Any], PlannedTask]] = {
    "contrastive": _plan_contrastive,
    "tokenizer": _plan_tokenizer,
    "decoder": _plan_decoder,
}
"""Kind -> its task without files."""

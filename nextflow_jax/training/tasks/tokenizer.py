"""The tokenizer task: the vision tokenizer on pictures, with a frozen contrastive teacher for its semantic half."""

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax.config import from_config_dict
from nextflow_jax.data.pictures import open_pictures
from nextflow_jax.errors import UserError
from nextflow_jax.training.checkpoint import restore_variables
from nextflow_jax.training.experiment import TokenizerExperiment
from nextflow_jax.training.flops import TRAINING_FACTOR, forward_flops
from nextflow_jax.training.task import BatchSpec, Metrics, Variables
from nextflow_jax.training.tasks.picture_batches import picture_order, readable_images
from nextflow_jax.vision.codec import fingerprint, images_to_float
from nextflow_jax.vision.dual_encoder import DualEncoderConfig, teacher_features, vision_tower
from nextflow_jax.vision.losses import tokenizer_loss
from nextflow_jax.vision.tokenizer import VisionTokenizer, start_from_teacher


class Teacher(NamedTuple):
    """A trained dual encoder; of its parameters only the vision tower is kept."""

    config: DualEncoderConfig
    params: dict[str, Any]
    fingerprint: str


class TokenizerTask:
    """See nextflow_jax.training.task.Task. Batches: images uint8. State beside the parameters: "codebook"."""

    def __init__(self, experiment: TokenizerExperiment) -> None:
        self._experiment = experiment
        self._model = VisionTokenizer(experiment.model)
        self._pictures = open_pictures(experiment.pictures)
        self._order = picture_order(
            self._pictures,
            experiment.model.family.sizes if experiment.buckets else (experiment.pictures.size,),
            experiment.seed,
            experiment.train.batch_size,
        )
        self._teacher = load_teacher(experiment) if experiment.teacher else None

    def init(self, key: jax.Array) -> Variables:
        """Fresh parameters and codebook."""
        return self._model.init(key, jnp.zeros(self.batch_specs()[0]["images"].shape), train=False)

    def after_init(self, variables: Variables) -> Variables:
        """The semantic encoder starts as the teacher's vision tower, if so configured."""
        if not self._experiment.init_from_teacher:
            return variables
        tower = vision_tower(self._teacher.params)
        return {**variables, "params": start_from_teacher(variables["params"], tower)}

    def constants(self) -> dict[str, Any]:
        """The teacher's vision tower, where the loss needs it."""
        return {"teacher": self._teacher.params} if self._experiment.loss.needs_teacher else {}

    def loss(
        self,
        params: Any,
        variables: Variables,
        constants: Any,
        batch: dict[str, jax.Array],
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, tuple[Metrics, Variables]]:
        """The weighted sum of nextflow_jax.vision.losses; the codebook moves by its moving averages."""
        mirror_key, model_key = jax.random.split(key)
        images = images_to_float(batch["images"])
        if self._experiment.mirror_share:
            mirrored = jax.random.bernoulli(mirror_key, self._experiment.mirror_share, (images.shape[0], 1, 1, 1))
            images = jnp.where(mirrored, images[:, :, ::-1], images)
        features = self._features(constants, images)
        output, new = self._model.apply(
            {"params": params, **variables}, images, train=True, key=model_key, mutable=["codebook"]
        )
        loss, metrics = tokenizer_loss(output, images, features, self._experiment.loss)
        return loss, (metrics, dict(new))

    def batch_specs(self) -> tuple[BatchSpec, ...]:
        """images [B, H, W, 3], of one size or of every bucket's."""
        shapes = ((self._experiment.train.batch_size, *size, 3) for size in self._order.sizes)
        return tuple({"images": jax.ShapeDtypeStruct(shape, jnp.uint8)} for shape in shapes)

    def batches(self, start: int, part: int, num_parts: int) -> Iterator[dict[str, np.ndarray]]:
        """Pictures in keyed order."""
        batch = start
        while True:
            size, keys = self._order.keys(batch, part, num_parts)
            yield {"images": readable_images(self._pictures, keys, size)[1]}
            batch += 1

    def describe(self) -> dict[str, str]:
        """Fingerprints of pictures and teacher."""
        teacher = {"teacher": self._teacher.fingerprint} if self._teacher else {}
        return {"pictures": self._pictures.fingerprint, **teacher}

    def save_artifacts(self, workdir: pathlib.Path) -> None:
        """None: config.json and a checkpoint are all that users of the tokenizer need."""

    def tokens_per_step(self, spec: BatchSpec) -> int:
        """Codes of the global batch, over all scales."""
        rows, *size, _ = spec["images"].shape
        return rows * self._experiment.model.family.schedule(size).num_tokens

    def flops_per_step(self, params: Any, spec: BatchSpec) -> float:
        """Forward and backward of the tokenizer, forward of the teacher."""
        images = jax.ShapeDtypeStruct(spec["images"].shape, jnp.float32)
        codebook = jax.eval_shape(self.init, jax.random.key(0))["codebook"]
        variables = {"params": params, "codebook": codebook}
        total = TRAINING_FACTOR * forward_flops(lambda v, x: self._model.apply(v, x, train=False), variables, images)
        return total + forward_flops(self._features, self.constants(), images)

    def _features(self, constants: Any, images: jax.Array) -> jax.Array | None:
        if not self._experiment.loss.needs_teacher:
            return None
        return teacher_features(self._teacher.config, constants["teacher"], images)


def load_teacher(experiment: TokenizerExperiment) -> Teacher:
    """The vision tower of `experiment.teacher`'s newest checkpoint.

    Raises:
      UserError: no checkpoint there, or it is no contrastive run, or its features do not fit the tokenizer's.
    """
    restored = restore_variables(experiment.teacher)
    if restored.config["kind"] != "contrastive":
        raise UserError(
            f"config.teacher = {experiment.teacher!r}: holds a run of kind {restored.config['kind']!r}; "
            "give the --workdir of a contrastive one"
        )
    config = from_config_dict(DualEncoderConfig, restored.config["model"], f"{experiment.teacher}: config.model")
    pairs = {
        "model.teacher_width": (experiment.model.teacher_width, config.vit.transformer.width),
        "model.vit.patch": (experiment.model.vit.patch, config.vit.patch),
    }
    for name, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise UserError(f"config.{name} = {ours}: the teacher {experiment.teacher} has {theirs}; set it to that")
    params = {"vision": vision_tower(restored.params)}
    return Teacher(config, params, fingerprint(params, config))

"""The tokenizer task: the vision tokenizer on pictures, a frozen teacher for its semantic half, judges of its pictures.

The judges: LPIPS, whose published weights are constants, and a discriminator that learns in the same step
(nextflow_jax/vision/adversarial.py).
"""

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax.config import from_config_dict
from nextflow_jax.convert.lpips import load_lpips
from nextflow_jax.data.pictures import open_pictures
from nextflow_jax.errors import UserError
from nextflow_jax.training.checkpoint import restore_variables
from nextflow_jax.training.experiment import TokenizerExperiment
from nextflow_jax.training.flops import TRAINING_FACTOR, forward_flops
from nextflow_jax.training.task import BatchSpec, Metrics, Variables
from nextflow_jax.training.tasks.picture_batches import picture_order, readable_images
from nextflow_jax.vision.adversarial import (
    DISCRIMINATOR,
    Players,
    adversarial_loss,
    init_players,
    join_players,
    without_players,
)
from nextflow_jax.vision.codec import fingerprint, images_to_float
from nextflow_jax.vision.discriminator import STATE, discriminator
from nextflow_jax.vision.dual_encoder import DualEncoderConfig, teacher_features, vision_tower
from nextflow_jax.vision.losses import tokenizer_loss
from nextflow_jax.vision.lpips import lpips_distance
from nextflow_jax.vision.tokenizer import TokenizerOutput, VisionTokenizer, start_from_teacher


class Teacher(NamedTuple):
    """A trained dual encoder; of its parameters only the vision tower is kept."""

    config: DualEncoderConfig
    params: dict[str, Any]
    fingerprint: str


class TokenizerTask:
    """See nextflow_jax.training.task.Task. Batches: images uint8.

    State beside the parameters: "codebook"; with adversarial.weight also "adversarial", and among the parameters
    "discriminator".
    """

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
        self._lpips = load_lpips(experiment.lpips_vgg, experiment.lpips_linear) if experiment.loss.lpips else None

    def init(self, key: jax.Array) -> Variables:
        """Fresh parameters and codebook, and the discriminator's where there is one."""
        images = jnp.zeros(self.batch_specs()[0]["images"].shape)
        variables = self._model.init(key, images, train=False)
        adversarial = self._experiment.adversarial
        if not adversarial.weight:
            return variables
        return join_players(variables, *init_players(adversarial, jax.random.fold_in(key, 1), images))

    def after_init(self, variables: Variables) -> Variables:
        """The semantic encoder starts as the teacher's vision tower, if so configured."""
        if not self._experiment.init_from_teacher:
            return variables
        tower = vision_tower(self._teacher.params)
        return {**variables, "params": start_from_teacher(variables["params"], tower)}

    def constants(self) -> dict[str, Any]:
        """The teacher's vision tower and the weights of LPIPS, where the loss needs them."""
        teacher = {"teacher": self._teacher.params} if self._experiment.loss.needs_teacher else {}
        return {**teacher, "lpips": self._lpips} if self._lpips else teacher

    def loss(
        self,
        params: Any,
        variables: Variables,
        constants: Any,
        batch: dict[str, jax.Array],
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, tuple[Metrics, Variables]]:
        """The weighted sum of nextflow_jax.vision.losses, and of both players' where there is a discriminator.

        The codebook moves by its moving averages.
        """
        mirror_key, model_key = jax.random.split(key)
        images = images_to_float(batch["images"])
        if self._experiment.mirror_share:
            mirrored = jax.random.bernoulli(mirror_key, self._experiment.mirror_share, (images.shape[0], 1, 1, 1))
            images = jnp.where(mirrored, images[:, :, ::-1], images)
        features = self._features(constants, images)

        def tokenizer_part(output: TokenizerOutput) -> tuple[jax.Array, Metrics]:
            return tokenizer_loss(output, images, features, self._experiment.loss, constants.get("lpips"))

        variables = {"params": params, **variables}
        if self._experiment.adversarial.weight:
            return self._adversarial_loss(variables, images, tokenizer_part, model_key, step)
        output, new = self._forward(variables, images, model_key)
        loss, metrics = tokenizer_part(output)
        return loss, (metrics, new)

    def _forward(self, variables: Variables, images: jax.Array, key: jax.Array) -> tuple[TokenizerOutput, Variables]:
        output, new = self._model.apply(
            variables,
            images,
            train=True,
            key=key,
            update_codebook=not self._experiment.freeze_codebook,
            mutable=["codebook"],
        )
        return output, dict(new)

    def _adversarial_loss(
        self,
        variables: Variables,
        images: jax.Array,
        tokenizer_part: Callable[[TokenizerOutput], tuple[jax.Array, Metrics]],
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, tuple[Metrics, Variables]]:
        own = without_players(variables)

        def rebuild(last_kernel: jax.Array) -> tuple[jax.Array, tuple[TokenizerOutput, Variables]]:
            params = _with_last_kernel(own["params"], last_kernel)
            output, new = self._forward({**own, "params": params}, images, key)
            return output.reconstruction, (output, new)

        # One forward gives the pictures and the way back from them to the last kernel, which the adaptive weight takes.
        fake, to_last_kernel, (output, new) = jax.vjp(rebuild, _last_kernel(own["params"]), has_aux=True)
        players = Players(variables["params"][DISCRIMINATOR], variables[STATE], images, fake, to_last_kernel)
        loss, metrics, state = adversarial_loss(
            self._experiment.adversarial,
            players,
            lambda pictures: tokenizer_part(output._replace(reconstruction=pictures)),
            jax.random.fold_in(key, 1),
            step,
        )
        # What is reported as the loss leaves the game out: it tells how training goes, with or without a discriminator.
        return loss, ({**metrics, "loss": metrics["loss/total"]}, {**new, STATE: state})

    def loss_weight(self, batch: dict[str, jax.Array]) -> jax.Array:
        """The number of pictures."""
        return jnp.asarray(float(batch["images"].shape[0]))

    def batch_specs(self) -> tuple[BatchSpec, ...]:
        """images [B, H, W, 3], of one size or of every bucket's."""
        shapes = ((self._experiment.train.batch_size, *size, 3) for size in self._order.sizes)
        return tuple({"images": jax.ShapeDtypeStruct(shape, jnp.uint8)} for shape in shapes)

    def batch_axes(self) -> tuple[str, ...]:
        """Rows."""
        return ("batch",)

    def batches(self, start: int, part: int, num_parts: int) -> Iterator[dict[str, np.ndarray]]:
        """Pictures in keyed order."""
        batch = start
        while True:
            size, keys = self._order.keys(batch, part, num_parts)
            yield {"images": readable_images(self._pictures, keys, size)[1]}
            batch += 1

    def documents(self, batch: int) -> list[str]:
        """Its pictures."""
        return self._order.keys(batch, 0, 1)[1]

    def describe(self) -> dict[str, str]:
        """Fingerprints of pictures and teacher."""
        teacher = {"teacher": self._teacher.fingerprint} if self._teacher else {}
        return {"pictures": self._pictures.fingerprint, **teacher}

    def save_artifacts(self, workdir: pathlib.Path) -> None:
        """None: config.json and a checkpoint are all that users of the tokenizer need."""

    def data_statistics(self, first: int, stop: int) -> dict[str, float]:
        """None: every picture is seen once an epoch."""
        return {}

    def tokens_per_step(self, spec: BatchSpec) -> int:
        """Codes of the global batch, over all scales."""
        rows, *size, _ = spec["images"].shape
        return rows * self._experiment.model.family.schedule(size).num_tokens

    def flops_per_step(self, params: Any, spec: BatchSpec) -> float:
        """Forward and backward of the tokenizer, forward of the teacher; of the judges see `_judges_flops`."""
        images = jax.ShapeDtypeStruct(spec["images"].shape, jnp.float32)
        rest = {name: tree for name, tree in self._abstract.items() if name != "params"}
        variables = without_players({"params": params, **rest})
        total = TRAINING_FACTOR * forward_flops(lambda v, x: self._model.apply(v, x, train=False), variables, images)
        return (
            total
            + forward_flops(self._features, jax.eval_shape(self.constants), images)
            + self._judges_flops(params, images)
        )

    def _judges_flops(self, params: Any, images: jax.ShapeDtypeStruct) -> float:
        """LPIPS: two forwards, a backward to the pictures. Discriminator: the same for the generator, two trainings for
        itself; R1, which comes rarely, and steps before its start are not told apart."""
        total = 0.0
        if self._lpips:
            total += 1.5 * forward_flops(lpips_distance, self._lpips, images, images)
        if DISCRIMINATOR in params:
            judge = discriminator(self._experiment.adversarial.discriminator)
            state = self._abstract[STATE]["discriminator"]
            variables = {"params": params[DISCRIMINATOR], STATE: state}
            total += (2 + 2 * TRAINING_FACTOR) * forward_flops(judge.apply, variables, images)
        return total

    @functools.cached_property
    def _abstract(self) -> Variables:
        """Shapes of all variables; traced once, however many kinds of batches there are."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def _features(self, constants: Any, images: jax.Array) -> jax.Array | None:
        if not self._experiment.loss.needs_teacher:
            return None
        return teacher_features(self._teacher.config, constants["teacher"], images)


def _last_kernel(params: Any) -> jax.Array:
    """Of the pixel decoder's last convolution."""
    return params["pixel_decoder"]["out"]["kernel"]


def _with_last_kernel(params: Any, kernel: jax.Array) -> Any:
    decoder = params["pixel_decoder"]
    return {**params, "pixel_decoder": {**decoder, "out": {**decoder["out"], "kernel": kernel}}}


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
    config = from_config_dict(DualEncoderConfig, restored.config["model"], f"{experiment.teacher}: config.model", True)
    pairs = {
        "model.teacher_width": (experiment.model.teacher_width, config.vit.transformer.width),
        "model.vit.patch": (experiment.model.vit.patch, config.vit.patch),
    }
    for name, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise UserError(f"config.{name} = {ours}: the teacher {experiment.teacher} has {theirs}; set it to that")
    params = {"vision": vision_tower(restored.params)}
    return Teacher(config, params, fingerprint(params, config))

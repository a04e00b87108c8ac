"""The contrastive task: an image-text dual encoder on captioned pictures, the teacher of the vision tokenizer."""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from nextflow_jax.data.keys import uniform_range
from nextflow_jax.data.pictures import PictureSet, open_pictures
from nextflow_jax.text import TextTokenizer, make_text_tokenizer
from nextflow_jax.training.experiment import ContrastiveExperiment
from nextflow_jax.training.flops import TRAINING_FACTOR, forward_flops
from nextflow_jax.training.task import BatchSpec, Metrics, Variables
from nextflow_jax.training.tasks.picture_batches import PictureBatches, readable_images
from nextflow_jax.vision.codec import images_to_float
from nextflow_jax.vision.dual_encoder import DualEncoder, contrastive_loss


class ContrastiveTask:
    """See nextflow_jax.training.task.Task. Batches: images uint8, tokens and lengths int32.

    A picture's caption is drawn among its languages anew each time.
    """

    def __init__(self, experiment: ContrastiveExperiment) -> None:
        self._experiment = experiment
        self._batch_size = experiment.train.batch_size
        self._pictures = open_pictures(experiment.pictures)
        keys = self._pictures.split("train")
        self._order = PictureBatches(keys, experiment.seed, self._batch_size)
        self.text_tokenizer = make_text_tokenizer(experiment.text, _captions(self._pictures, keys))
        self._tokens = {
            key: _encode_captions(self._pictures, key, self.text_tokenizer, experiment.model.max_text_tokens)
            for key in keys
        }
        self._model = DualEncoder(experiment.model, self.text_tokenizer.size)

    def init(self, key: jax.Array) -> Variables:
        """Fresh variables of both towers."""
        images, tokens, lengths = (jnp.zeros(spec.shape, spec.dtype) for spec in self.batch_specs()[0].values())
        return self._model.init(key, images_to_float(images), tokens, lengths)

    def after_init(self, variables: Variables) -> Variables:
        """Nothing to change."""
        return variables

    def constants(self) -> dict[str, Any]:
        """None."""
        return {}

    def loss(
        self,
        params: Any,
        variables: Variables,
        constants: Any,
        batch: dict[str, jax.Array],
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, tuple[Metrics, Variables]]:
        """The sigmoid loss over all pairs of the global batch."""
        images = images_to_float(batch["images"])
        output = self._model.apply({"params": params}, images, batch["tokens"], batch["lengths"])
        loss, metrics = contrastive_loss(output)
        return loss, (metrics, variables)

    def loss_weight(self, batch: dict[str, jax.Array]) -> jax.Array:
        """The number of rows."""
        return jnp.asarray(float(batch["images"].shape[0]))

    def batch_specs(self) -> tuple[BatchSpec, ...]:
        """images [B, H, W, 3], tokens [B, E], lengths [B]."""
        rows, length = self._batch_size, self._experiment.model.max_text_tokens
        spec = {
            "images": jax.ShapeDtypeStruct((rows, *self._experiment.pictures.size, 3), jnp.uint8),
            "tokens": jax.ShapeDtypeStruct((rows, length), jnp.int32),
            "lengths": jax.ShapeDtypeStruct((rows,), jnp.int32),
        }
        return (spec,)

    def batch_axes(self) -> tuple[str, ...]:
        """Rows."""
        return ("batch",)

    def batches(self, start: int, part: int, num_parts: int) -> Iterator[dict[str, np.ndarray]]:
        """Pictures in keyed order, each with one of its captions."""
        length = self._experiment.model.max_text_tokens
        batch = start
        while True:
            keys, images = readable_images(self._pictures, self._order.keys(batch, part, num_parts))
            row = batch * self._batch_size + part * len(keys)
            draws = uniform_range(row, row + len(keys), self._experiment.seed, "captions")
            chosen = [self._tokens[key][int(draw * len(self._tokens[key]))] for key, draw in zip(keys, draws)]
            tokens = np.stack([np.pad(ids, (0, length - len(ids))) for ids in chosen])
            lengths = np.asarray([len(ids) for ids in chosen], np.int32)
            yield {"images": images, "tokens": tokens, "lengths": lengths}
            batch += 1

    def documents(self, batch: int) -> list[str]:
        """Its pictures."""
        return self._order.keys(batch, 0, 1)

    def describe(self) -> dict[str, str]:
        """Fingerprints of pictures and text tokenizer."""
        return {"pictures": self._pictures.fingerprint, "text_tokenizer": self.text_tokenizer.fingerprint}

    def save_artifacts(self, workdir: pathlib.Path) -> None:
        """The text tokenizer, under its own file name."""
        self.text_tokenizer.save(workdir / self.text_tokenizer.file_name)

    def data_statistics(self, first: int, stop: int) -> dict[str, float]:
        """None: every picture is seen once an epoch."""
        return {}

    def tokens_per_step(self, spec: BatchSpec) -> int:
        """Patches and text positions of the global batch."""
        patch = self._experiment.model.vit.patch
        height, width = self._experiment.pictures.size
        return self._batch_size * (height // patch * (width // patch) + self._experiment.model.max_text_tokens)

    def flops_per_step(self, params: Any, spec: BatchSpec) -> float:
        """Forward and backward of both towers and the similarities."""
        images, tokens, lengths = spec.values()
        images = jax.ShapeDtypeStruct(images.shape, jnp.float32)
        return TRAINING_FACTOR * forward_flops(self._model.apply, {"params": params}, images, tokens, lengths)


def _captions(pictures: PictureSet, keys: list[str]) -> list[str]:
    return [caption for key in keys for caption in pictures.info(key).captions.values()]


def _encode_captions(
    pictures: PictureSet, key: str, tokenizer: TextTokenizer, length: int
) -> list[Int[np.ndarray, "tokens"]]:
    captions = pictures.info(key).captions.values()
    return [np.asarray(tokenizer.encode(caption)[:length], np.int32) for caption in captions]

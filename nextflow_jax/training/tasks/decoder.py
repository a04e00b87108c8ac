"""The decoder task: the unified transformer on packed rows of interleaved text and images from shards."""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax.bundle import load_bundle
from nextflow_jax.data.manifest import check_fingerprints
from nextflow_jax.data.pipeline import RowBuilder, make_batches, make_plan
from nextflow_jax.data.plan import Plan, RowPlan
from nextflow_jax.data.shards import TOKENIZER_DIRECTORY, open_shards
from nextflow_jax.models.activations import COLLECTION
from nextflow_jax.models.decoder import Decoder, DecoderInputs
from nextflow_jax.models.embedding import with_codebook
from nextflow_jax.models.objective import hidden_loss
from nextflow_jax.training.experiment import DecoderExperiment
from nextflow_jax.training.flops import TRAINING_FACTOR, forward_flops
from nextflow_jax.training.outliers import outliers
from nextflow_jax.training.row_cost import row_cost
from nextflow_jax.training.task import BatchSpec, Metrics, Variables


class DecoderTask:
    """See nextflow_jax.training.task.Task. Batches: the arrays of `sequence.Sequence`, [B, S, ...]."""

    def __init__(self, experiment: DecoderExperiment) -> None:
        self._experiment = experiment
        pipeline = experiment.pipeline
        self._shards = open_shards(pipeline.shards, pipeline.verify)
        bundle = load_bundle(self._shards.tokenizer_path)
        self._codec = bundle.codec
        self._fingerprints = {
            "text_tokenizer": bundle.text_tokenizer.fingerprint,
            "vision_tokenizer": bundle.codec.fingerprint,
        }
        check_fingerprints(self._shards.manifest, **self._fingerprints, schedule_family=bundle.codec.family)
        self._accumulate = self._codec.accumulate if pipeline.sequence.inputs == "accumulated" else None
        self._model = Decoder(experiment.model)
        self._spec = self._make_spec()
        if pipeline.mixture.max_epochs:  # said before anything is compiled
            self._plan.check_length(experiment.train.steps)

    def init(self, key: jax.Array) -> Variables:
        """Fresh parameters."""
        return self._model.init(key, self._inputs())

    def after_init(self, variables: Variables) -> Variables:
        """The vision embeddings start as the tokenizer's codebook (recipe section 4)."""
        return with_codebook(variables, self._codec.codebook)

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
        """Weighted cross-entropy over the global batch."""
        hidden, written = self._hidden(params, DecoderInputs.of(batch))
        loss, metrics = hidden_loss(
            hidden,
            self._model.apply({"params": params}, method="loss_heads"),
            batch["targets"],
            batch["loss_weights"],
            batch["scale_index"],
            self._experiment.model,
            self._experiment.objective,
        )
        filled = jnp.sum(batch["document"] > 0).astype(jnp.float32)
        metrics = metrics | {"fill": (filled, jnp.asarray(float(batch["document"].size)))}
        if written:
            metrics |= outliers(written, batch["document"] > 0)
        return loss, (metrics, variables)

    def loss_weight(self, batch: dict[str, jax.Array]) -> jax.Array:
        """The sum of the loss weights."""
        return jnp.sum(batch["loss_weights"])

    def batch_specs(self) -> tuple[BatchSpec, ...]:
        """The arrays of `sequence.Sequence`."""
        return (self._spec,)

    def batch_axes(self) -> tuple[str, ...]:
        """Rows and positions."""
        return ("batch", "sequence")

    def batches(self, start: int, part: int, num_parts: int) -> Iterator[dict[str, np.ndarray]]:
        """From the pipeline, split "train"."""
        return make_batches(
            self._experiment.pipeline,
            self._shards,
            "train",
            self._experiment.seed,
            self._experiment.train.batch_size,
            start,
            part,
            num_parts,
            accumulate=self._accumulate,
            vocabulary=self._experiment.model.vocabulary,
            cost=row_cost(self._experiment.model),
            plan=None if self._experiment.pipeline.plan_file else self._plan,
        )

    def documents(self, batch: int) -> list[str]:
        """By the plan; a document that was extracted several times has the number of the draw in its key."""
        index = self._shards.index("train")
        return [index.key(record) for row in self._plan.batch(batch) for record in row.records.tolist()]

    def describe(self) -> dict[str, str]:
        """Fingerprints of the tokenizers and the shards."""
        return {**self._fingerprints, "shards": self._shards.fingerprint}

    def save_artifacts(self, workdir: pathlib.Path) -> None:
        """The bundle with both tokenizers, which exporting and sampling need."""
        target = workdir / TOKENIZER_DIRECTORY
        if target.exists():
            return
        unfinished = workdir / f"{TOKENIZER_DIRECTORY}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(self._shards.tokenizer_path, unfinished)
        unfinished.rename(target)

    def data_statistics(self, first: int, stop: int) -> dict[str, float]:
        """The mixture and padding realised, see `Plan.realised`; nothing where rows come from a file."""
        return {} if self._experiment.pipeline.plan_file else self._plan.realised(first, stop)

    def tokens_per_step(self, spec: BatchSpec) -> int:
        """Positions of the global batch, padding included."""
        return self._experiment.train.batch_size * self._experiment.pipeline.row_length

    def flops_per_step(self, params: Any, spec: BatchSpec) -> float:
        """Forward and backward; attention counts all pairs of positions, hidden ones included, as PaLM's MFU does.

        So whatever kernel runs: one that skips blocks gains in the MFU.
        """
        model = Decoder(dataclasses.replace(self._experiment.model, attention="reference"))

        def forward(params: Any, inputs: DecoderInputs) -> jax.Array:
            hidden, _ = model.apply({"params": params}, inputs, method="hidden")
            head = model.apply({"params": params}, method="head_weights")
            return hidden @ head.astype(hidden.dtype)

        return TRAINING_FACTOR * forward_flops(forward, params, DecoderInputs.of(spec))

    @functools.cached_property
    def _plan(self) -> Plan:
        experiment = self._experiment
        cost, rows = row_cost(experiment.model), experiment.train.batch_size
        return make_plan(experiment.pipeline, self._shards, "train", experiment.seed, rows, cost)

    def _hidden(self, params: Any, inputs: DecoderInputs) -> tuple[jax.Array, Variables]:
        """The last hidden states, and the magnitudes of the residual stream if they are to be logged."""
        mutable = [COLLECTION] if self._experiment.train.activations else []
        (hidden, _), written = self._model.apply({"params": params}, inputs, method="hidden", mutable=mutable)
        return hidden, dict(written)

    def _inputs(self) -> DecoderInputs:
        return DecoderInputs.of({name: jnp.zeros(spec.shape, spec.dtype) for name, spec in self._spec.items()})

    def _make_spec(self) -> BatchSpec:
        experiment = self._experiment
        build = RowBuilder(experiment.pipeline, self._shards, "train", self._accumulate, experiment.model.vocabulary)
        empty = build(RowPlan.empty()).sequence
        rows = self._experiment.train.batch_size
        arrays = empty.arrays().items()
        return {name: jax.ShapeDtypeStruct((rows, *array.shape), array.dtype) for name, array in arrays}

"""The contract between the training loop and what is trained: the loop knows nothing but these methods."""

import pathlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

Variables = dict[str, Any]
"""Flax collections by name: "params" is trained by the optimizer; others, e.g. "codebook", are replaced by the loss."""

BatchSpec = dict[str, jax.ShapeDtypeStruct]
"""Shapes and dtypes of one global batch, by array; the first dimension of every array is the global batch size."""

Metrics = dict[str, tuple[jax.Array, jax.Array]]
"""Metric name -> (sum, weight), both float32 scalars; reported as sum / weight."""


@runtime_checkable
class Task(Protocol):
    """One kind of training: model, loss and batches. Implementations are in nextflow_jax/training/tasks."""

    def init(self, key: jax.Array) -> Variables:
        """Fresh variables, boxed with logical axis names; pure, traced for abstract shapes and for sharded init."""

    def after_init(self, variables: Variables) -> Variables:
        """Host-side changes to fresh variables, such as weights taken from another run.

        Takes and returns unboxed arrays of the same tree, shapes and dtypes; called once, when no checkpoint exists.
        """

    def constants(self) -> Any:
        """Arrays that the loss reads and nothing changes, e.g. a teacher's weights: a tree, {} when there are none.

        They reach the devices once, whole, and no checkpoint holds them.
        """

    def loss(
        self,
        params: Any,
        variables: Variables,
        constants: Any,
        batch: dict[str, jax.Array],
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, tuple[Metrics, Variables]]:
        """The scalar loss to minimise, its metrics and the new values of the other collections; pure, traced.

        Args:
          params: the "params" collection.
          variables: the other collections.
          constants: as `constants` returns them.
          batch: the global batch, arrays as in one of `batch_specs`.
          key: this step's key; fold names into it for separate streams.
          step: int32 scalar, counted from 0.
        """

    def loss_weight(self, batch: dict[str, jax.Array]) -> jax.Array:
        """What the loss of these rows is divided by, a scalar: parts of a batch are weighted by it (`accumulate`)."""

    def batch_specs(self) -> tuple[BatchSpec, ...]:
        """The kinds of global batches there are: one, or one a bucket; equal but for shapes, with equally many rows.

        The step is compiled for each before the first.
        """

    def batch_axes(self) -> tuple[str, ...]:
        """Logical axes of the first dimensions of every array of a batch, by which they are split: "batch" at least."""

    def batches(self, start: int, part: int, num_parts: int) -> Iterator[dict[str, np.ndarray]]:
        """Part `part` of `num_parts` equal row blocks of global batches `start`, `start` + 1, ..., without end.

        A pure function of (seed, batch index): processes that share rows of a batch ask for the same part, and all
        parts of a batch are of the same kind.
        """

    def documents(self, batch: int) -> list[str]:
        """Keys of what global batch `batch` holds, for people who look for what spoilt a step."""

    def describe(self) -> dict[str, str]:
        """Fingerprints of what the variables depend on (data, tokenizers, teacher), compared on resume."""

    def save_artifacts(self, workdir: pathlib.Path) -> None:
        """Writes the files that users of the checkpoints need beside them, e.g. the text tokenizer."""

    def data_statistics(self, first: int, stop: int) -> dict[str, float]:
        """What global batches first..stop-1 hold, a pure function of the two; {} when there is nothing to say.

        The log has it as data/<name>, of the batches since its last record.
        """

    def tokens_per_step(self, spec: BatchSpec) -> int:
        """Positions the model processes in one global batch, one of `batch_specs`."""

    def flops_per_step(self, params: Any, spec: BatchSpec) -> float:
        """Model FLOPs of one training step (forward and backward, no recomputation) for the MFU.

        Args:
          params: the (possibly abstract) unboxed parameters.
          spec: one of `batch_specs`.
        """

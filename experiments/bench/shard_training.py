"""What the data benchmarks share to train on shards of random documents, which no tokenizer lies beside."""

import io
import pathlib
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np

from experiments.bench.table2_documents import SMALL_CODES, SMALL_TEXT
from experiments.bench.training import RandomRows
from nextflow_jax.data.pipeline import PipelineConfig, RowBuilder, make_batches
from nextflow_jax.data.plan import RowPlan
from nextflow_jax.data.shards import ShardSet
from nextflow_jax.models.presets import decoder_preset
from nextflow_jax.training.experiment import DecoderExperiment
from nextflow_jax.training.loop import train
from nextflow_jax.training.metrics import read_metrics
from nextflow_jax.training.row_cost import row_cost
from nextflow_jax.training.settings import TrainConfig
from nextflow_jax.vocabulary import Vocabulary

MAX_SCALES = 19


class ShardRows(RandomRows):
    """The decoder task on shards without tokenizers; every batch may come late, by `delay` seconds."""

    def __init__(self, experiment: DecoderExperiment, shards: ShardSet, delay: float = 0.0) -> None:
        vocabulary = experiment.model.vocabulary
        row = RowBuilder(experiment.pipeline, shards, "train", None, vocabulary)(RowPlan.empty()).sequence
        rows = experiment.train.batch_size
        super().__init__(experiment, {name: np.stack([array] * rows) for name, array in row.arrays().items()})
        self._shards, self._delay = shards, delay

    def batches(self, start: int, part: int, num_parts: int) -> Iterator[dict[str, np.ndarray]]:
        """From the pipeline, as `DecoderTask` takes them."""
        experiment = self._experiment
        size, cost = experiment.train.batch_size, row_cost(experiment.model)
        for batch in make_batches(
            experiment.pipeline, self._shards, "train", experiment.seed, size, start, part, num_parts,
            vocabulary=experiment.model.vocabulary, cost=cost,
        ):  # fmt: skip
            time.sleep(self._delay)
            yield batch

    def describe(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def save_artifacts(self, workdir: pathlib.Path) -> None:
        """None."""


def small_experiment(pipeline: PipelineConfig, rows: int, steps: int, log_every: int) -> DecoderExperiment:
    """The small decoder with the vocabulary of the toy documents."""
    model = decoder_preset("small", Vocabulary(SMALL_TEXT, SMALL_CODES), 16, MAX_SCALES)
    settings = TrainConfig(steps=steps, batch_size=rows, log_every=log_every, checkpoint_every=steps)
    return DecoderExperiment(model=model, pipeline=pipeline, train=settings)


def train_on(experiment: DecoderExperiment, shards: ShardSet, delay: float = 0.0) -> dict[str, float]:
    """Trains through the real loop; what the last record of its metrics says."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        train(experiment, ShardRows(experiment, shards, delay), workdir, jax.devices(), io.StringIO())
        return read_metrics(workdir)[-1]

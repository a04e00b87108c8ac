"""The losses of a decoder run on documents that it never saw: those of its shards' validation split.

    python -m experiments.ablations.decoder_losses --workdir R/decoder

Every validation document is read, in rows as in training (the last batch begins the documents anew); no self-correction
was drawn there. Prints one JSON object: cross-entropy in nats, without the loss's weights, and accuracy, of text,
vision and every scale, beside the means of the run's last training figures ("train").
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax import compile_cache
from nextflow_jax.bundle import load_bundle
from nextflow_jax.data.mixture import MixtureConfig
from nextflow_jax.data.pipeline import make_batches
from nextflow_jax.data.shards import open_shards
from nextflow_jax.errors import UserError, run_entry_point
from nextflow_jax.training.checkpoint import restore_variables
from nextflow_jax.training.experiment import DecoderExperiment, build_experiment
from nextflow_jax.training.metrics import read_metrics
from nextflow_jax.training.tasks.decoder import DecoderTask

SPLIT = "validation"
MEASURED = ("cross_entropy/", "accuracy/")
"""Beginnings of the metrics that are kept."""
LAST_LINES = 4
"""Lines of the training log that "train" averages: one is a few batches, and too noisy to compare."""


def main(arguments: list[str]) -> None:
    """Measures and prints; see the docstring of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of a decoder run")
    workdir = parser.parse_args(arguments).workdir
    compile_cache.enable()
    restored = restore_variables(workdir)
    experiment = build_experiment(restored.config)
    if not isinstance(experiment, DecoderExperiment):
        raise UserError(f"--workdir {workdir}: holds a run of kind {experiment.kind!r}; give a decoder's")
    figures = validation_figures(experiment, restored.params)
    print(json.dumps({"step": restored.meta["step"], **figures, "train": training_figures(read_metrics(workdir))}))


def training_figures(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the last lines of a training log, by metric; of lines that have it."""
    last = lines[-LAST_LINES:]
    names = sorted({name for line in last for name in line if name.startswith(MEASURED)})
    return {name: statistics.fmean(line[name] for line in last if name in line) for name in names}


def validation_figures(experiment: DecoderExperiment, params: Any) -> dict[str, float]:
    """Means over one pass through the validation documents, by metric.

    Raises:
      UserError: the shards have no such split.
    """
    shards = open_shards(experiment.pipeline.shards)
    documents = len(shards.index(SPLIT))
    # Every document once and as it is: no dropout of conditions, no weights of tasks (the split may lack some).
    pipeline = dataclasses.replace(experiment.pipeline, condition_dropout=0.0, mixture=MixtureConfig())
    task = DecoderTask(experiment)
    # The decoder's loss uses neither randomness nor the step.
    key, step = jax.random.key(0), jnp.zeros((), jnp.int32)
    measure = jax.jit(lambda params, batch: task.loss(params, {}, {}, batch, key, step)[1][0])
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    seen = 0
    accumulated = pipeline.sequence.inputs == "accumulated"
    accumulate = load_bundle(shards.tokenizer_path).codec.accumulate if accumulated else None
    batches = make_batches(pipeline, shards, SPLIT, 0, experiment.train.batch_size, 0, 0, 1, accumulate=accumulate)
    while seen < documents:
        batch = next(batches)
        seen += sum(len(set(row[row > 0].tolist())) for row in batch["document"])
        for name, pair in jax.device_get(measure(params, batch)).items():
            if name.startswith(MEASURED):
                sums[name] += np.asarray(pair, np.float64)
    return {name: total / weight if weight else math.nan for name, (total, weight) in sorted(sums.items())}


if __name__ == "__main__":
    run_entry_point(main, sys.argv[1:])

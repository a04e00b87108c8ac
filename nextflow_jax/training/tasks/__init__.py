"""The tasks: what each kind of experiment trains, behind the one protocol of nextflow_jax/training/task.py."""

from collections.abc import Callable
from typing import Any

from nextflow_jax.training.settings import Experiment
from nextflow_jax.training.task import Task
from nextflow_jax.training.tasks.contrastive import ContrastiveTask
from nextflow_jax.training.tasks.decoder import DecoderTask
from nextflow_jax.training.tasks.tokenizer import TokenizerTask

TASKS: dict[str, Callable[[Any], Task]] = {
    "contrastive": ContrastiveTask,
    "tokenizer": TokenizerTask,
    "decoder": DecoderTask,
}
"""Kind -> constructor of its task, given its experiment."""


def make_task(experiment: Experiment) -> Task:
    """The task of an experiment whose preflight has passed; opens its data.

    Raises:
      UserError: data or models that it needs are missing or do not fit.
    """
    return TASKS[experiment.kind](experiment)

"""A tokenizer whose codebook is frozen may be trained in parts; one whose codebook moves may not."""

import dataclasses

import jax
import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.training.step import make_train_step
from nextflow_jax.training.tasks import make_task
from tests.training import small


def make_step(teacher, parts, **fields):
    experiment = dataclasses.replace(small.tokenizer(teacher), **fields)
    task = make_task(experiment)
    layout = small.layout_of(task)
    return task, layout, make_train_step(task, layout.optimizer, 0, parts)


def trace(task, layout, step):
    return jax.eval_shape(step, layout.abstract, task.constants(), task.batch_specs()[0])


def test_a_frozen_codebook_is_left_alone(teacher):
    state, _ = trace(*make_step(teacher, 2, freeze_codebook=True))
    assert set(state.variables) == {"codebook"}


def test_a_codebook_that_moves_refuses(teacher):
    made = make_step(teacher, 2)
    with pytest.raises(UserError, match="accumulate = 2: this loss changes codebook/"):
        trace(*made)

"""The tokenizer task: bit-for-bit resume with its codebook, its teacher and what does not fit it."""

import dataclasses

import jax
import numpy as np
import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.training.checkpoint import restore_variables
from nextflow_jax.training.step import make_train_step
from nextflow_jax.training.tasks import make_task
from nextflow_jax.vision.losses import TokenizerLossConfig
from tests.training import small


@pytest.fixture(scope="module")
def finished(teacher, tmp_path_factory):
    """Folder and last state of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("tokenizer")
    return folder, small.run(small.tokenizer(teacher), folder)


def test_it_learns_and_resumes_bit_for_bit(finished, teacher, tmp_path):
    small.check_resume(small.tokenizer(teacher), *finished, tmp_path)
    assert "psnr" in small.logged(tmp_path)[-1]
    assert restore_variables(tmp_path).variables["codebook"]["quantizer"]["age"].dtype == np.int32


def test_the_semantic_encoder_starts_as_the_teacher(teacher):
    tower = restore_variables(teacher).params["vision"]
    zeros = jax.tree.map(np.zeros_like, tower)
    start = make_task(small.tokenizer(teacher)).after_init({"params": {"semantic_encoder": zeros, "rest": 1}})
    jax.tree.map(np.testing.assert_array_equal, start["params"]["semantic_encoder"], tower)


def test_without_a_teacher_and_with_mirrors_it_traces(teacher):
    loss = TokenizerLossConfig(distillation_cosine=0.0, distillation_l2=0.0)
    plain = dataclasses.replace(small.tokenizer(""), loss=loss, init_from_teacher=False, mirror_share=0.5)
    task = make_task(plain)
    assert task.constants() == {} and "teacher" not in task.describe()
    layout = small.layout_of(task)
    step = make_train_step(task, layout.optimizer, 0)
    _, metrics = jax.eval_shape(step, layout.abstract, task.constants(), task.batch_specs()[0])
    assert "loss/l2" in metrics and "loss/distillation_l2" not in metrics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_width": 16}, "config.model.teacher_width = 16: the teacher .* has 8"),
        ({"vit": dataclasses.replace(small.VIT, patch=2)}, "config.model.vit.patch = 2: the teacher .* has 4"),
    ],
)
def test_a_teacher_that_does_not_fit(teacher, change, message):
    experiment = small.tokenizer(teacher)
    experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **change))
    with pytest.raises(UserError, match=message):
        make_task(experiment)


def test_a_teacher_of_another_kind(finished):
    with pytest.raises(UserError, match="holds a run of kind 'tokenizer'"):
        make_task(small.tokenizer(finished[0]))

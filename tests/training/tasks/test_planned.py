"""Planned tasks have the shapes of the real ones, which opened their files."""

import dataclasses

import jax
import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.training.tasks import make_task
from nextflow_jax.training.tasks.planned import plan_task
from tests.training import small


def same_shapes(planned, real):
    assert planned.batch_specs() == real.batch_specs()
    assert planned.batch_axes() == real.batch_axes()
    key = jax.random.key(0)
    ours, theirs = (jax.eval_shape(task.init, key) for task in (planned, real))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert jax.tree.leaves(ours) == jax.tree.leaves(theirs)
    spec = real.batch_specs()[0]
    assert planned.tokens_per_step(spec) == real.tokens_per_step(spec)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    small.write_shards(folder)
    return folder


@pytest.mark.parametrize("inputs", ["residual", "accumulated"])
def test_the_decoder(shards, inputs):
    experiment = small.decoder(shards, inputs=inputs).with_input_sizes()
    planned, assumed = plan_task(experiment)
    same_shapes(planned, make_task(experiment))
    assert assumed == {}


def test_sizes_that_shards_decide_must_be_given():
    with pytest.raises(UserError, match="--config.model.vocabulary.text_size=N .*--config.model.max_scales=N"):
        plan_task(small.decoder("nowhere"))


def test_the_dual_encoder(monkeypatch):
    small.register_drawn(monkeypatch)
    experiment = small.contrastive()
    real = make_task(experiment)
    text = dataclasses.replace(experiment.text, vocab_size=real.text_tokenizer.size)
    planned, assumed = plan_task(dataclasses.replace(experiment, text=text))
    same_shapes(planned, real)
    assert assumed == {"text": f"its tokenizer has text.vocab_size = {text.vocab_size} ids"}


def test_the_tokenizer_without_its_teacher():
    experiment = small.tokenizer("nowhere")
    planned, assumed = plan_task(experiment)
    assert assumed == {"teacher": "its vision tower has the shape of the semantic encoder (model.vit)"}
    (spec,) = planned.batch_specs()
    assert spec["images"].shape == (small.TRAIN.batch_size, *small.PICTURES.size, 3)
    assert set(jax.eval_shape(planned.constants)) == {"teacher"}
    assert planned.flops_per_step(jax.eval_shape(planned.init, jax.random.key(0))["params"], spec) > 0

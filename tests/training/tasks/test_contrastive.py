"""The contrastive task: its step traces, its batches are pure, its text tokenizer stays with the run."""

import jax
import numpy as np

from nextflow_jax.text import load_text_tokenizer
from nextflow_jax.training.checkpoint import read_meta
from nextflow_jax.training.step import make_train_step
from nextflow_jax.training.tasks import make_task
from tests.training import small


def test_it_traces_and_keeps_its_text_tokenizer(teacher):
    task = make_task(small.contrastive())
    layout = small.layout_of(task)
    step = make_train_step(task, layout.optimizer, 0)
    state, metrics = jax.eval_shape(step, layout.abstract, task.constants(), task.batch_specs()[0])
    assert jax.tree.structure(state) == jax.tree.structure(layout.abstract)
    assert {"loss", "retrieval/image_to_text"} <= metrics.keys()
    tokenizer = load_text_tokenizer(teacher)
    assert read_meta(teacher)["fingerprints"]["text_tokenizer"] == tokenizer.fingerprint


def test_captions_are_drawn_among_the_languages_and_parts_join():
    task = make_task(small.contrastive())
    whole, again = (next(task.batches(3, 0, 1)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    parts = [next(task.batches(3, part, 2)) for part in range(2)]
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    jax.tree.map(np.testing.assert_array_equal, whole, joined)
    texts = {task.text_tokenizer.decode(row[:n].tolist()) for row, n in zip(whole["tokens"], whole["lengths"])}
    assert any(text.startswith("Q") for text in texts) and any(text.startswith("a ") for text in texts)
    assert task.flops_per_step(jax.eval_shape(task.init, jax.random.key(0))["params"], task.batch_specs()[0]) > 0

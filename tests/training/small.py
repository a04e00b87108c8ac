"""One tiny experiment of each kind on twenty drawn pictures, and what they need of one another."""

import dataclasses
import io
import os
import signal
import time

import jax
import numpy as np

from nextflow_jax import sharding
from nextflow_jax.data import pictures
from nextflow_jax.data.documents import Document, Image, Text
from nextflow_jax.data.extraction import ExtractionConfig, extract
from nextflow_jax.data.extraction_pictures import PictureSetSource
from nextflow_jax.data.pictures import PictureInfo, PicturesConfig, PictureSet
from nextflow_jax.data.pipeline import PipelineConfig
from nextflow_jax.models.presets import decoder_preset
from nextflow_jax.sequence import SequenceConfig
from nextflow_jax.sharding import MeshConfig
from nextflow_jax.text import TextTokenizerConfig
from nextflow_jax.training.checkpoint import checkpoint_steps
from nextflow_jax.training.experiment import ContrastiveExperiment, DecoderExperiment, TokenizerExperiment
from nextflow_jax.training.loop import train
from nextflow_jax.training.metric_table import is_timed
from nextflow_jax.training.metrics import read_metrics
from nextflow_jax.training.optimizer import OptimizerConfig
from nextflow_jax.training.settings import TrainConfig
from nextflow_jax.training.state import make_layout
from nextflow_jax.training.tasks import make_task
from nextflow_jax.vision.dual_encoder import DualEncoderConfig
from nextflow_jax.vision.transformer import TransformerConfig
from nextflow_jax.vision.vit import ViTConfig
from nextflow_jax.vocabulary import Vocabulary
from tests import tiny_models

NUM_PICTURES = 20
COLOURS = ("red", "green", "blue")
PICTURES = PicturesConfig(name="drawn", size=(12, 12), languages=("en", "de"))
TEXT = TextTokenizerConfig(vocab_size=300)
VIT = ViTConfig(patch=4, position_grid=(3, 3), transformer=TransformerConfig(8, 1, 2, 16))
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warmup_steps=2, ema_decay=0.5)
TRAIN = TrainConfig(steps=6, batch_size=8, log_every=2, checkpoint_every=100, prefetch=1, tensorboard=False)


def open_drawn(config):
    """Squares of three colours at random places."""
    images = np.full((NUM_PICTURES, *config.size, 3), 255, np.uint8)
    infos = []
    for index in range(NUM_PICTURES):
        y, x = np.random.default_rng(index).integers(0, 8, 2)
        images[index, y : y + 4, x : x + 4] = np.eye(3, dtype=np.uint8)[index % 3] * 255
        captions = {"en": f"a {COLOURS[index % 3]} square at {y} {x}", "de": f"Quadrat {index}"}
        split = "train" if index < 16 else "validation"
        infos.append(PictureInfo(f"p{index}", split, captions, "g", "s", f"p{index}", f"p{index}", {}, str(index)))
    return PictureSet(config, infos, lambda position: images[position], {})


def register_drawn(monkeypatch):
    """Makes PICTURES openable."""
    monkeypatch.setitem(pictures.SOURCES, "drawn", open_drawn)


def common(**train):
    return {"optimizer": OPTIMIZER, "train": dataclasses.replace(TRAIN, **train), "pictures": PICTURES}


def contrastive(**train):
    model = DualEncoderConfig(vit=VIT, text=TransformerConfig(8, 1, 2, 16), max_text_tokens=6, embedding_dim=8)
    return ContrastiveExperiment(**common(**train), text=TEXT, model=model)


def tokenizer(teacher, **train):
    model = dataclasses.replace(tiny_models.TOKENIZER_CONFIG, vit=VIT)
    return TokenizerExperiment(**common(**train), model=model, teacher=str(teacher), init_from_teacher=True)


def decoder(shards, mesh=MeshConfig(), inputs="residual", **train):  # noqa: B008  (frozen)
    model = decoder_preset("tiny", Vocabulary(0, 0, 8), 0, 0, width=16, heads=2, kv_heads=2, head_size=8,
                           mlp_width=16, rope_sections=(1, 1, 2), layers=1)  # fmt: skip
    pipeline = PipelineConfig(
        shards=str(shards), row_length=64, window_batches=2, sequence=SequenceConfig(inputs=inputs)
    )
    return DecoderExperiment(**common(**train), mesh=mesh, model=model, pipeline=pipeline)


def write_shards(out, text_tokenizer=None):
    """Shards of picture-caption documents, made with the random tokenizers of tests/tiny_models.py."""
    drawn = open_drawn(PICTURES)
    documents = {
        split: [
            Document(key, "text_to_image", (Text(drawn.info(key).captions["en"], "prompt"), Image(key, "response")))
            for key in drawn.split(split)
        ]
        for split in ("train", "validation")
    }
    config = ExtractionConfig(tasks=("text_to_image",), draws=2, text=TEXT)
    source = PictureSetSource(drawn, documents, config.batch_size)
    extract(config, source, tiny_models.codec(), text_tokenizer or tiny_models.text_tokenizer(), out, seed=0)


def layout_of(task):
    """The layout of a task's state on one device."""
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    return make_layout(task, OPTIMIZER, TRAIN.steps, mesh, sharding.make_rules())


def stop_early(task):
    """The task, which now sends SIGTERM to its process while it makes the third batch."""
    make_batches = task.batches

    def batches(start, part, num_parts):
        for index, batch in enumerate(make_batches(start, part, num_parts)):
            if index == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.05)
            yield batch

    task.batches = batches
    return task


def run(experiment, workdir, prepare=lambda task: task):
    """Trains the task that `prepare` makes of the experiment's on one device; returns the last state on the host."""
    task = prepare(make_task(experiment))
    return jax.device_get(train(experiment, task, workdir, jax.devices()[:1], io.StringIO()))


def logged(workdir):
    """The records of a run without what depends on the clock."""
    return [{k: v for k, v in record.items() if not is_timed(k)} for record in read_metrics(workdir)]


def check_resume(experiment, folder, expected, workdir):
    """Stops a run in the middle, continues it, and compares with the uninterrupted one in `folder`, bit for bit."""
    run(experiment, workdir, stop_early)
    assert 0 < checkpoint_steps(workdir)[-1] < experiment.train.steps
    jax.tree.map(np.testing.assert_array_equal, run(experiment, workdir), expected)
    assert logged(workdir) == logged(folder)
    losses = [record["loss"] for record in logged(folder)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]

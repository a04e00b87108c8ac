"""A decoder goes on with more text ids: what it knew it still knows, under the new ids; mistakes are named."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from nextflow_jax.config import to_plain_dict
from nextflow_jax.errors import UserError
from nextflow_jax.models.decoder import Decoder, DecoderInputs
from nextflow_jax.models.presets import decoder_preset
from nextflow_jax.text import HuggingFaceTokenizer
from nextflow_jax.training.checkpoint import Checkpoints, Position, restore_variables
from nextflow_jax.training.loop import train
from nextflow_jax.training.moved_ids import moved_ids
from nextflow_jax.training.state import TrainState
from nextflow_jax.training.tasks import make_task
from nextflow_jax.training.warm_start import InitFromConfig, load_warm_start
from nextflow_jax.vocabulary import Vocabulary
from tests import qwen_folder
from tests.training import small
from tests.training.toy import toy_experiment

ONE = jax.devices()[:1]
TABLES = ("embedding/tokens", "head/")


def decoder_of(vocabulary, head):
    sizes = {"width": 16, "heads": 2, "kv_heads": 2, "head_size": 8, "mlp_width": 16, "layers": 1}
    return Decoder(decoder_preset("tiny", vocabulary, 4, 3, **sizes, rope_sections=(1, 1, 2), head=head))


@pytest.mark.parametrize("head", ["shared", "separate"])
def test_logits_of_old_ids_are_those_of_the_source(tmp_path, head):
    theirs, ours = Vocabulary(20, 6, 8), Vocabulary(23, 9, 8)
    ids = theirs.ids_within(ours)
    assert (ids[19], ids[theirs.pad], ids[theirs.eoi]) == (19, ours.pad, ours.eoi)
    assert ids[theirs.code_ids(5)] == ours.code_ids(5) and len(ids) == theirs.used
    inputs = DecoderInputs.zeros(1, theirs.used)
    inputs = inputs._replace(tokens=jnp.arange(theirs.used)[None], attend_end=inputs.attend_end + theirs.used)
    old, new = decoder_of(theirs, head), decoder_of(ours, head)
    source, fresh = (meta.unbox(model.init(jax.random.key(i), inputs)) for i, model in enumerate((old, new)))
    with Checkpoints(tmp_path, 1, to_plain_dict(toy_experiment()), {}) as checkpoints:
        checkpoints.save(5, TrainState(np.zeros((), np.int32), source["params"], {}, {}, {}), Position(5))
    config = InitFromConfig(str(tmp_path), grow=(*TABLES, "embedding/codes"))
    made = load_warm_start(config, fresh, moved_ids(theirs, new.config)).apply(fresh)
    made = jax.tree.map(jnp.asarray, made)
    before, _ = old.apply(source, inputs)
    after, _ = new.apply(made, inputs._replace(tokens=jnp.asarray(ids)[None]))
    np.testing.assert_array_equal(before[..., : theirs.used], after[..., ids])
    for name in (20, 21, 22):
        row = made["params"]["embedding"]["tokens"][name]
        np.testing.assert_array_equal(row, fresh["params"]["embedding"]["tokens"][name])


def tokenizer(*more):
    """That of tests/qwen_folder.py with tokens at its end."""
    model = qwen_folder.tokenizer()
    model.add_tokens(list(more))
    return HuggingFaceTokenizer(model.to_str().encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of one step, and shards of other tokenizers."""
    folder = tmp_path_factory.mktemp("grown")
    added = {"first": ["x1", "x2"], "more": ["x1", "x2", "x3"], "other": ["x1", "y2", "x3"], "less": []}
    for name, tokens in added.items():
        small.write_shards(folder / name, tokenizer(*tokens))
    experiment = small.decoder(folder / "first", steps=1).with_input_sizes()
    (folder / "run").mkdir()
    train(experiment, make_task(experiment), folder / "run", ONE, io.StringIO())
    return folder


def goes_on(folder, shards, **source):
    start = InitFromConfig(workdir=str(folder / "run"), **source)
    return dataclasses.replace(small.decoder(folder / shards, steps=1), init_from=start).with_input_sizes()


def start(experiment, workdir):
    workdir.mkdir()
    train(experiment, make_task(experiment), workdir, ONE, io.StringIO())


def test_a_run_goes_on_with_a_grown_tokenizer(folder, tmp_path):
    experiment = goes_on(folder, "more", grow=TABLES)
    still = dataclasses.replace(experiment.optimizer, learning_rate=1e-30)
    start(dataclasses.replace(experiment, optimizer=still), tmp_path / "run")
    theirs, ours = restore_variables(folder / "run"), restore_variables(tmp_path / "run")
    sizes = [Vocabulary(**run.config["model"]["vocabulary"]) for run in (theirs, ours)]
    assert sizes[1].text_size == sizes[0].text_size + 1
    ids = sizes[0].ids_within(sizes[1])
    tables = [run.params["embedding"]["tokens"] for run in (theirs, ours)]
    np.testing.assert_allclose(tables[1][ids], tables[0][: sizes[0].used], rtol=1e-6)


def test_mistakes_are_named(folder, tmp_path):
    for shards, source, message in (
        ("more", {}, "2 with other ids there .grow moves them.: params/embedding/tokens, params/head/kernel"),
        ("other", {"grow": TABLES}, "text id .* is 'x2' in .*run/tokenizer and 'y2' in the shards"),
        ("less", {"grow": TABLES}, "the source has text_size .* and this model .*or let the arrays start anew"),
    ):
        with pytest.raises(UserError, match=message):
            start(goes_on(folder, shards, **source), tmp_path / shards)
    start(goes_on(folder, "less", fresh=TABLES), tmp_path / "anew")

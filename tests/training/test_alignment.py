"""Which entries alignment trains, for every kind of head; that all others stay after steps of the decoder task."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import traverse_util

from nextflow_jax.errors import UserError
from nextflow_jax.training.alignment import alignment_freeze
from nextflow_jax.training.optimizer import OptimizerConfig, make_optimizer
from nextflow_jax.training.state import init_state
from nextflow_jax.training.tasks import make_task
from tests.models import random_rows
from tests.training import small

CONNECTOR = {"embedding/connector/out/bias", "embedding/connector/out/kernel"}
NEW_INPUTS = {"embedding/scales", "embedding/scale_count_gain", "embedding/tokens"}
VOCABULARY = random_rows.VOCABULARY


def trained_entries(model, step, **options):
    """Name -> (entries that train, along the axis of the rows) of every parameter that trains, whole ones None."""
    part = alignment_freeze(model, step, **options)
    _, variables = random_rows.make_decoder(model)
    optimizer = make_optimizer(OptimizerConfig(**part._asdict()), 10, variables["params"])
    trained = optimizer.split(variables["params"])[0]
    ones = traverse_util.flatten_dict(optimizer.in_range(jax.tree.map(np.ones_like, trained)), sep="/")
    rows = {name: np.asarray(leaf).any(axis=0 if name.startswith("head/") else -1) for name, leaf in ones.items()}
    return {name: None if there.all() else np.flatnonzero(there) for name, there in rows.items()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head", ["shared", "separate"])
def test_alignment_trains_the_connector_and_new_head_rows_alone(head, tied):
    model = random_rows.tiny_config(head=head, tied_head=tied)
    last = VOCABULARY.used if head == "shared" else VOCABULARY.vision_offset
    new_rows = np.arange(VOCABULARY.text_size, last)
    where = "embedding/tokens" if tied else "head/kernel" if head == "shared" else "head/text_kernel"
    of_head = {where} | ({"head/vision_kernel"} if head == "separate" else set())
    joint, connector, heads = (trained_entries(model, step) for step in ("joint", "connector", "head"))
    assert set(joint) == CONNECTOR | of_head and set(connector) == CONNECTOR and set(heads) == of_head
    for entries in (joint, heads):
        np.testing.assert_array_equal(entries[where], new_rows)
        assert all(rows is None for name, rows in entries.items() if name not in (where, "head/vision_kernel"))


def test_other_new_inputs_on_request():
    for changes in ({}, {"scale_embeddings": False, "scale_count_encoding": False}):
        model = random_rows.tiny_config(**changes)
        entries = trained_entries(model, "connector", new_inputs=True)
        assert set(entries) == CONNECTOR | (NEW_INPUTS if not changes else {"embedding/tokens"})
        specials = np.arange(VOCABULARY.text_size, VOCABULARY.vision_offset)
        np.testing.assert_array_equal(entries["embedding/tokens"], specials)


def test_an_unknown_step_is_refused():
    with pytest.raises(UserError, match="did you mean joint"):
        alignment_freeze(random_rows.tiny_config(), "jointly")


def test_after_steps_of_the_task_everything_else_is_as_it_was(tmp_path):
    shards = tmp_path / "shards"
    small.write_shards(shards)
    experiment = small.decoder(shards, steps=3, log_every=1).with_input_sizes()
    part = alignment_freeze(experiment.model)
    optimizer = dataclasses.replace(experiment.optimizer, weight_decay=0.5, no_decay=(), **part._asdict())
    experiment = dataclasses.replace(experiment, optimizer=optimizer)
    task = make_task(experiment)
    layout = small.layout_of(task)
    before = traverse_util.flatten_dict(jax.device_get(init_state(task, layout, experiment.seed).params), sep="/")
    state = small.run(experiment, tmp_path / "run")
    after = traverse_util.flatten_dict(state.params, sep="/")
    vocabulary = experiment.model.vocabulary
    new = slice(vocabulary.text_size, vocabulary.used)
    moved = {name for name in after if not np.array_equal(before[name], after[name])}
    assert moved == CONNECTOR | {"head/kernel"}
    changed = (before["head/kernel"] != after["head/kernel"]).any(axis=0)
    assert changed[new].all() and not np.delete(changed, new).any()
    whole = dataclasses.replace(experiment, optimizer=dataclasses.replace(optimizer, train_rows=()))
    small.run(whole, tmp_path / "whole")
    norms, of_whole = ([record["grad_norm"] for record in small.logged(tmp_path / name)] for name in ("run", "whole"))
    assert norms[0] < of_whole[0]
    # Adam's count and two moments of three arrays, and the averages of three.
    assert len(jax.tree.leaves(state.opt_state)) == 1 + 2 * 3 and len(jax.tree.leaves(state.ema)) == 3

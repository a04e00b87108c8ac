"""Plans written ahead: the same rows and batches as planned in the run, and files that are refused."""

import dataclasses
import pickle

import numpy as np
import pytest

from nextflow_jax.data.costs import RowCost
from nextflow_jax.data.mixture import MixtureConfig
from nextflow_jax.data.packing import STRATEGIES
from nextflow_jax.data.pipeline import PipelineConfig, make_batches, make_plan
from nextflow_jax.data.plan_file import PlanFile, plan_settings, write_plan
from nextflow_jax.errors import UserError

CONFIG = PipelineConfig(
    row_length=128, window_batches=2, condition_dropout=0.3, task_inversion=0.5, reader_threads=0, prefetch_batches=0
)
BATCH = 4
COST = RowCost(1.0, 0.01)


def write(path, shard_set, start, stop, config=CONFIG):
    settings = plan_settings(config, shard_set, "train", 0, BATCH, COST)
    write_plan(path, make_plan(config, shard_set, "train", 0, BATCH, COST), start, stop, settings)
    return settings


def batches(config, shard_set, start, count, part=0, parts=1, seed=0):
    found = make_batches(config, shard_set, "train", seed, BATCH, start, part, parts, cost=COST)
    return [next(found) for _ in range(count)]


@pytest.mark.parametrize("packing", STRATEGIES)
def test_rows_and_batches_are_those_planned_online(shard_set, tmp_path, packing):
    weighted = MixtureConfig((("text", 1.0), ("text_to_image", 2.0)))
    online = dataclasses.replace(CONFIG, packing=packing, mixture=weighted)
    settings = write(tmp_path / "plan.npz", shard_set, 3, 9, online)
    plan, file = make_plan(online, shard_set, "train", 0, BATCH, COST), PlanFile(tmp_path / "plan.npz", settings)
    assert file.batches == range(3, 9)
    sent = pickle.loads(pickle.dumps(file))
    for n in (8, 3, 5):
        for ours, again, theirs in zip(file.batch(n), sent.batch(n), plan.batch(n), strict=True):
            for field in dataclasses.fields(theirs):
                np.testing.assert_array_equal(getattr(ours, field.name), getattr(theirs, field.name))
                np.testing.assert_array_equal(getattr(again, field.name), getattr(theirs, field.name))
    offline = dataclasses.replace(online, plan_file=str(tmp_path / "plan.npz"))
    for part in range(2):
        ours, theirs = (batches(config, shard_set, 4, 3, part, 2) for config in (offline, online))
        for one, other in zip(ours, theirs, strict=True):
            assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_batch_that_the_file_lacks_is_named(shard_set, tmp_path):
    write(tmp_path / "plan.npz", shard_set, 0, 2)
    config = dataclasses.replace(CONFIG, plan_file=str(tmp_path / "plan.npz"))
    with pytest.raises(UserError, match="holds global batches 0 to 1, not 2"):
        batches(config, shard_set, 0, 3)


@pytest.mark.parametrize(
    ("changed", "seed", "named"),
    [
        ({"packing": "compute_budget"}, 0, "packing 'fixed_length', not 'compute_budget'"),
        ({"condition_dropout": 0.1}, 0, "condition_dropout 0.3, not 0.1"),
        ({}, 1, "seed 0, not 1"),
    ],
)
def test_other_settings_are_refused_by_name(shard_set, tmp_path, changed, seed, named):
    write(tmp_path / "plan.npz", shard_set, 0, 2)
    config = dataclasses.replace(CONFIG, plan_file=str(tmp_path / "plan.npz"), **changed)
    with pytest.raises(UserError, match=named):
        batches(config, shard_set, 0, 1, seed=seed)


def test_what_does_not_change_rows_may_differ(shard_set, tmp_path):
    write(tmp_path / "plan.npz", shard_set, 0, 2)
    more = {"response_only": True, "reader_threads": 1, "prefetch_batches": 1}
    assert batches(dataclasses.replace(CONFIG, plan_file=str(tmp_path / "plan.npz"), **more), shard_set, 0, 2)


@pytest.mark.parametrize("damage", ["missing", "truncated", "other"])
def test_files_that_hold_no_plan_are_refused(shard_set, tmp_path, damage):
    path = tmp_path / "plan.npz"
    settings = write(path, shard_set, 0, 2)
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        np.savez(path, weights=np.zeros(3))
    with pytest.raises(UserError, match="plan.npz is not readable"):
        PlanFile(path, settings)

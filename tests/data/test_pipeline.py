import dataclasses
import logging
import shutil

import numpy as np
import pytest

from nextflow_jax import sequence
from nextflow_jax.config import preflight
from nextflow_jax.data.mixture import MixtureConfig
from nextflow_jax.data.pipeline import PipelineConfig, make_batches, make_plan
from nextflow_jax.data.segments import invert, to_segments
from nextflow_jax.data.shards import open_shards
from nextflow_jax.errors import UserError

CONFIG = PipelineConfig(
    row_length=128,
    window_batches=4,
    condition_dropout=0.3,
    last_scale_context=True,
    reader_threads=1,
    prefetch_batches=1,
)
BATCH = 4


def take(shards, count, start=0, part=0, parts=1, config=CONFIG, seed=0, split="train", **options):
    batches = make_batches(config, shards, split, seed, BATCH, start, part, parts, **options)
    return [next(batches) for _ in range(count)]


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.array_equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype, name


@pytest.fixture(scope="module")
def batches(shard_set):
    return take(shard_set, 10)


def test_resuming_at_any_batch_goes_on_the_same(shard_set, batches):
    for start in range(10):
        for ours, theirs in zip(take(shard_set, 2, start), batches[start:]):
            assert_same(ours, theirs)


def test_saved_iterator_state_goes_on_the_same(shard_set, batches):
    iterator = make_batches(CONFIG, shard_set, "train", 0, BATCH, 0, 0, 1)
    for n in range(6):
        state = iterator.get_state()
        assert_same(next(iterator), batches[n])
        fresh = make_batches(CONFIG, shard_set, "train", 0, BATCH, 0, 0, 1)
        fresh.set_state(state)
        assert_same(next(fresh), batches[n])


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_any_number_of_processes_sees_the_same_global_batches(shard_set, batches, parts):
    slices = [take(shard_set, 6, 2, part, parts) for part in range(parts)]
    for expected, *ours in zip(batches[2:], *slices):
        assert_same({name: np.concatenate([part[name] for part in ours]) for name in expected}, expected)


def test_threads_do_not_change_the_batches(shard_set, batches):
    for threads, ahead in ((0, 0), (4, 8)):
        config = dataclasses.replace(CONFIG, reader_threads=threads, prefetch_batches=ahead)
        for ours, theirs in zip(take(shard_set, 6, config=config), batches):
            assert_same(ours, theirs)


def test_arrays_are_those_of_the_sequence_in_their_dtypes(batches):
    taps = CONFIG.sequence.taps
    shapes = {"vision_ids": (taps,), "vision_weights": (taps,), "positions": (3,)}
    floats = {"vision_weights", "positions", "loss_weights"}
    for batch in batches:
        assert set(batch) == {field.name for field in dataclasses.fields(sequence.Sequence)} - {"vision_features"}
        for name, array in batch.items():
            assert array.shape == (BATCH, 128, *shapes.get(name, ()))
            assert array.dtype == (np.float32 if name in floats else np.int32)


@pytest.mark.parametrize("inversion", [0.0, 0.5])
def test_rows_hold_the_planned_documents_laid_out_by_sequence(shard_set, samples, batches, inversion):
    """Built again from the original documents, not from the shards."""
    documents = samples.documents(70)
    vocabulary = shard_set.manifest.vocabulary
    config = dataclasses.replace(CONFIG, task_inversion=inversion)
    plan = make_plan(config, shard_set, "train", 0, BATCH)
    assert any(row.inverted.any() for n in range(4) for row in plan.batch(n)) == bool(inversion)
    for n, batch in enumerate(take(shard_set, 4, config=config) if inversion else batches[:4]):
        for row, planned in enumerate(plan.batch(n)):
            parts = []
            for record, dropped, inverted in zip(planned.records, planned.dropped, planned.inverted):
                document = invert(documents[record]) if inverted else documents[record]
                segments = to_segments(document, samples.family, response_only=False, last_scale_context=True)
                segments = sequence.drop_condition(segments) if dropped else segments
                parts.append(sequence.flatten(segments, vocabulary, CONFIG.sequence))
            expected = sequence.pack_row(parts, 128, vocabulary).arrays()
            assert_same({name: array[row] for name, array in batch.items()}, expected)


def test_an_epoch_of_one_task_holds_each_document_once(shard_set, samples):
    config = dataclasses.replace(CONFIG, condition_dropout=0.0, mixture=MixtureConfig((("text", 1.0),)))
    texts = {tuple(d.segments[0].ids.tolist()) for d in samples.documents(70) if d.task == "text"}
    found = []
    for batch in take(shard_set, 2 * config.window_batches, config=config):
        for tokens, document in zip(batch["tokens"], batch["document"]):
            found += [tuple(tokens[document == i][1:-1].tolist()) for i in range(1, document.max() + 1)]
    counts = [found.count(text) for text in texts]
    assert set(found) == texts and min(counts) >= 2 and max(counts) - min(counts) <= 1


def test_response_only_leaves_no_loss_on_prompts(shard_set):
    config = dataclasses.replace(CONFIG, response_only=True, mixture=MixtureConfig((("text_to_image", 1.0),)))
    text_targets = 0
    for batch in take(shard_set, 2, config=config):
        is_text_target = (batch["targets"] < shard_set.manifest.text_size) & (batch["loss_weights"] > 0)
        text_targets += is_text_target.sum()
        assert (batch["loss_weights"] > 0).any()
    assert text_targets == 0


def test_response_only_of_a_document_turned_around_leaves_no_loss_on_its_picture(shard_set):
    only = MixtureConfig((("text_to_image", 1.0),))
    config = dataclasses.replace(CONFIG, response_only=True, task_inversion=1.0, mixture=only)
    batch = take(shard_set, 1, config=config)[0]
    of_picture = (batch["loss_weights"] > 0) & (batch["scale_index"] > 0)
    assert (batch["loss_weights"] > 0).any() and not of_picture.any()


def test_tokens_follow_the_weights_with_dropout_inversion_and_packing(shard_set):
    """Over a million positions; the text has half of those that are no padding."""
    weights = (("text", 2.0), ("text_to_image", 1.0), ("edit", 1.0))
    config = dataclasses.replace(
        CONFIG, task_inversion=0.5, condition_dropout=0.5, mixture=MixtureConfig(weights, unit="tokens")
    )
    found = make_plan(config, shard_set, "train", 0, 64).realised(0, 128)
    assert found["tokens/text"] == pytest.approx(0.5, abs=0.01)
    assert found["tokens/edit"] == pytest.approx(0.25, abs=0.01)


def test_inversion_and_weights_that_begin_later(shard_set):
    """The change is in the plan, so every number of processes sees it, and resuming after it goes on the same."""
    mixture = MixtureConfig((("text", 1.0),), changes=((4, (("text_to_image", 1.0),)),))
    config = dataclasses.replace(CONFIG, mixture=mixture, task_inversion=1.0, task_inversion_from=8)
    plan = make_plan(config, shard_set, "train", 0, BATCH)
    found = [plan.statistics(n) for n in (0, 4, 8)]
    assert [("documents/text" in each, each["documents/inverted"]) for each in found] == [
        (True, 0.0), (False, 0.0), (False, 1.0),
    ]  # fmt: skip
    batches = take(shard_set, 12, config=config)
    assert not any((batch["scale_index"] > 0).any() for batch in batches[:4])
    for part in range(2):
        for ours, expected in zip(take(shard_set, 6, 6, part, 2, config=config), batches[6:]):
            assert_same(ours, {name: array[2 * part : 2 * part + 2] for name, array in expected.items()})


@pytest.mark.parametrize("workers", [0, 1])
def test_the_end_of_the_data_stops_the_run_with_its_message(shard_set, workers):
    config = dataclasses.replace(CONFIG, mixture=MixtureConfig(max_epochs=(("all", 3.0),)), workers=workers)
    with pytest.raises(UserError, match=r"the data end after global batch \d+: every entry"):
        take(shard_set, 60, config=config)


def test_accumulated_inputs_come_with_features_in_every_row(shard_set):
    def accumulate(schedule, codes):
        cells = [height * width for height, width in (*schedule.grids[1:], schedule.final_grid)]
        return [np.full((n, 5), codes.sum(), np.float32) for n in cells]

    config = dataclasses.replace(
        CONFIG, sequence=sequence.SequenceConfig(inputs="accumulated"), mixture=MixtureConfig((("text", 1.0),))
    )
    batch = take(shard_set, 1, config=config, accumulate=accumulate)[0]
    assert batch["vision_features"].shape == (BATCH, 128, 5) and not batch["vision_features"].any()
    config = dataclasses.replace(config, mixture=MixtureConfig((("edit", 1.0),)))
    batch = take(shard_set, 1, config=config, accumulate=accumulate)[0]
    assert (batch["vision_features"].any(-1) == (batch["scale_index"] > 0)).all()


def test_start_logs_the_realised_mixture_once(shard_set, caplog):
    with caplog.at_level(logging.INFO):
        take(shard_set, 3)
        take(shard_set, 3, part=1, parts=2)
    lines = [record.getMessage() for record in caplog.records if "padding_share" in record.getMessage()]
    assert len(lines) == 1 and "tokens/edit" in lines[0]


def test_inversion_is_part_of_what_must_fit_a_row(shard_set):
    """A document that only fits as it is, but not with the context block of its inversion, is too long."""
    index = shard_set.index("train")
    inverted = (index.plain + index.inverted_context)[index.task == index.tasks.index("text_to_image")].max()
    only = MixtureConfig((("text_to_image", 1.0),))
    config = dataclasses.replace(CONFIG, row_length=int(inverted) - 1, mixture=only, drop_too_long=True)
    seen = []
    for share in (0.0, 0.5):
        plan = make_plan(dataclasses.replace(config, task_inversion=share), shard_set, "train", 0, BATCH)
        seen.append({record for n in range(12) for row in plan.batch(n) for record in row.records.tolist()})
    assert seen[1] < seen[0]


def test_shards_of_earlier_versions_do_without_inversion(shard_set, monkeypatch):
    old = dataclasses.replace(shard_set.index("train"), inverted_context=None)
    monkeypatch.setattr(shard_set, "index", lambda split: old)
    config = dataclasses.replace(CONFIG, task_inversion=0.1)
    make_plan(dataclasses.replace(config, last_scale_context=False), shard_set, "train", 0, BATCH).batch(0)
    make_plan(CONFIG, shard_set, "train", 0, BATCH)
    with pytest.raises(UserError, match="extract it again, or set config.pipeline.task_inversion to 0.0"):
        make_plan(config, shard_set, "train", 0, BATCH)


def test_documents_longer_than_a_row_are_refused_or_counted(shard_set, samples, caplog):
    index = shard_set.index("train")
    length = index.plain + index.context
    config = dataclasses.replace(CONFIG, row_length=int(length.max()) - 1)
    longest = int(length.argmax())
    message = f"{np.sum(length == length.max())} of 70 documents.*{index.key(longest)}, has {length.max()} positions"
    with pytest.raises(UserError, match=f"{message}; set row_length to {length.max()}, or drop_too_long"):
        take(shard_set, 1, config=config)
    with caplog.at_level(logging.WARNING):
        plan = make_plan(dataclasses.replace(config, drop_too_long=True), shard_set, "train", 0, BATCH)
    assert "left out" in caplog.text
    seen = {record for n in range(20) for row in plan.batch(n) for record in row.records.tolist()}
    assert seen == set(np.flatnonzero(length <= config.row_length).tolist())


def test_a_broken_record_is_skipped_and_logged_with_its_key(broken_shards, caplog):
    shards, documents, number = broken_shards
    config = dataclasses.replace(CONFIG, max_broken_fraction=0.05)
    with caplog.at_level(logging.WARNING):
        batches = take(shards, 12, config=config)
    lines = [record.getMessage() for record in caplog.records if "broken record" in record.getMessage()]
    assert len(lines) == 1 and documents[number].key in lines[0]
    plan = make_plan(config, shards, "train", 0, BATCH)
    for n, batch in enumerate(batches):
        for row, planned in enumerate(plan.batch(n)):
            assert batch["document"][row].max() == np.sum(planned.records != number)


def test_too_many_broken_records_stop_the_run(broken_shards):
    shards, documents, number = broken_shards
    config = dataclasses.replace(CONFIG, max_broken_fraction=0.04)
    with pytest.raises(UserError, match=f"1 of 20 records are broken, the last one {documents[number].key}.*0.04"):
        take(shards, 12, config=config)


def test_a_row_without_readable_documents_is_padding(broken_shards):
    shards, _, _ = broken_shards
    index = shards.index("train")
    config = dataclasses.replace(
        CONFIG, max_broken_fraction=1.0, row_length=int((index.plain + index.context).max()), window_batches=1
    )
    empty = [~row.any() for batch in take(shards, 12, config=config) for row in batch["document"]]
    assert any(empty)


def test_an_index_of_other_shards_is_noticed_while_reading(samples, tmp_path):
    """It lists as many documents, but with other lengths; the first is refused before a row can overflow."""
    documents = samples.documents(20)
    samples.write(tmp_path / "a", {"train": documents}, per_shard=20)
    samples.write(tmp_path / "b", {"train": documents[::-1]}, per_shard=20)
    shutil.copytree(tmp_path / "b" / "index", tmp_path / "a" / "index", dirs_exist_ok=True)
    with pytest.raises(UserError, match="1 of 20 records are broken, .* positions, the index, maybe of other"):
        take(open_shards(tmp_path / "a"), 1)


@pytest.mark.parametrize(("column", "value"), [("plain", 0), ("condition", -3), ("task", 9), ("source", 1)])
def test_an_index_with_impossible_numbers_is_refused_before_planning(samples, tmp_path, column, value):
    samples.write(tmp_path, {"train": samples.documents(20)}, per_shard=20)
    path = tmp_path / "index" / f"{column}.npy"
    numbers = np.load(path)
    numbers[7] = value
    np.save(path, numbers)
    with pytest.raises(UserError, match=f"index of .* is damaged: its column '{column}' has values from .*; copy it"):
        make_plan(CONFIG, open_shards(tmp_path), "train", 0, BATCH)


def test_a_batch_that_does_not_divide_is_refused(shard_set):
    with pytest.raises(UserError, match="global batch of 4 rows does not divide over 3 processes; use 6"):
        make_batches(CONFIG, shard_set, "train", 0, BATCH, 0, 0, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"row_length": 0}, {"window_batches": 0}, {"reader_threads": -1}, {"workers": -1}, {"packing": "fixed"},
        {"condition_dropout": 1.5}, {"task_inversion": 1.5}, {"max_broken_fraction": -0.1}, {"prefetch_batches": 0},
        {"task_inversion_from": 6}, {"task_inversion_from": -4},
        {"mixture": MixtureConfig((("text", 1.0),), changes=((6, (("edit", 1.0),)),))},
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_faults(change):
    with pytest.raises(UserError, match="config.*(use|raise it|did you mean fixed_length)"):
        preflight(dataclasses.replace(CONFIG, **change))


def test_worker_processes_do_not_change_the_batches(shard_set, batches):
    iterator = make_batches(dataclasses.replace(CONFIG, workers=2), shard_set, "train", 0, BATCH, 3, 0, 1)
    for expected in batches[3:8]:
        assert_same({name: np.array(array) for name, array in next(iterator).items()}, expected)
    iterator.close()

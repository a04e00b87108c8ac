import dataclasses
import itertools
import json
import pathlib
import shutil

import numpy as np
import pytest

from nextflow_jax.data import shards
from nextflow_jax.data.atomic_files import file_sha256, is_partial
from nextflow_jax.data.pipeline import PipelineConfig, make_batches, make_plan
from nextflow_jax.data.records import BrokenRecord, encode
from nextflow_jax.data.segments import count_positions
from nextflow_jax.errors import UserError


def test_every_document_is_read_back_under_its_number(samples, shard_set):
    documents = samples.documents(70)
    source = shard_set.source("train")
    assert len(source) == len(shard_set.index("train")) == 70
    for number in np.random.default_rng(0).permutation(70):
        assert encode(source[int(number)]) == encode(documents[number])


def test_index_describes_every_record_of_every_split(samples, shard_set):
    for split, documents in {"train": samples.documents(70), "validation": samples.documents(6, seed=1)}.items():
        index = shard_set.index(split)
        for number, document in enumerate(documents):
            counts = count_positions(document, samples.family)
            assert index.key(number) == document.key
            assert index.tasks[index.task[number]] == document.task
            for name, count in dataclasses.asdict(counts).items():
                assert getattr(index, name)[number] == count, name


def test_manifest_counts_records_tokens_and_bytes(samples, shard_set):
    train = shard_set.manifest.split("train")
    assert [shard.records for shard in train.shards] == [16, 16, 16, 16, 6] and train.records == 70
    expected = sum(count_positions(document, samples.family).plain for document in samples.documents(70))
    assert sum(shard.tokens for shard in train.shards) == expected
    for shard in train.shards:
        assert shard.bytes == (shard_set.directory / shard.file).stat().st_size


def test_finished_directory_holds_nothing_else(shard_set):
    names = sorted(path.name for path in shard_set.directory.iterdir())
    assert names == sorted(
        ["manifest.json", "index", "validation-00000-of-00001.array_record"]
        + [f"train-0000{i}-of-00005.array_record" for i in range(5)]
    )


GOLDEN_V1 = pathlib.Path(__file__).parents[1] / "goldens" / "shards_v1"


@pytest.mark.parametrize("verify", ["size", "full"])
def test_shards_of_version_1_are_read(verify):
    expected = json.loads((GOLDEN_V1 / "expected.json").read_text())
    opened = shards.open_shards(GOLDEN_V1, verify=verify)
    assert opened.manifest.schema_version == 1
    for split, documents in expected.items():
        index, source = opened.index(split), opened.source(split)
        assert len(index) == len(source) == len(documents)
        for number, wanted in enumerate(documents):
            found = source[number]
            assert (index.key(number), index.tasks[index.task[number]]) == (wanted["key"], wanted["task"])
            assert (found.key, found.task, found.source, found.licence) == (wanted["key"], wanted["task"], "", "")
            for name, count in wanted["counts"].items():
                assert getattr(index, name)[number] == count
            for ours, theirs in zip(found.segments, wanted["segments"], strict=True):
                assert ours.loss
                for name, value in theirs.items():
                    assert np.asarray(getattr(ours, name)).tolist() == value


@pytest.fixture
def copy(shard_set, tmp_path):
    return shutil.copytree(shard_set.directory, tmp_path / "copy")


def test_missing_shard_is_named(copy):
    (copy / "train-00003-of-00005.array_record").unlink()
    with pytest.raises(UserError, match="train-00003-of-00005.array_record is missing; the manifest lists it; copy it"):
        shards.open_shards(copy)


def test_truncated_shard_is_named_with_both_sizes(copy):
    path = copy / "train-00001-of-00005.array_record"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"00001.* has {size - 100} bytes, the manifest says {size}"):
        shards.open_shards(copy)


def test_changed_shard_is_found_by_full_verification_alone(copy):
    path = copy / "train-00001-of-00005.array_record"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    shards.open_shards(copy, verify="size")
    with pytest.raises(UserError, match="00001.* is damaged: its SHA-256"):
        shards.open_shards(copy, verify="full")


def test_unknown_verification_is_refused(copy):
    with pytest.raises(UserError, match="did you mean full"):
        shards.open_shards(copy, verify="fully")


@pytest.fixture
def two_sets(samples, tmp_path):
    """Two directories of the same tokenizers, the second with a source and without validation."""
    named = [dataclasses.replace(each, source="zoo", key=f"z/{each.key}") for each in samples.documents(9, seed=2)]
    content = {"a": {"train": samples.documents(20), "validation": samples.documents(3, seed=1)}, "b": {"train": named}}
    for name, splits in content.items():
        samples.write(tmp_path / name, splits, per_shard=8)
    return tmp_path / "a", tmp_path / "b", content


def test_several_directories_are_read_as_one(two_sets, samples):
    a, b, content = two_sets
    joined = shards.open_shards(f"{a}, {b}")
    documents = content["a"]["train"] + content["b"]["train"]
    index, source = joined.index("train"), joined.source("train")
    assert len(index) == len(source) == joined.manifest.split("train").records == 29
    assert index.sources == ("", "zoo")
    for number, document in enumerate(documents):
        assert encode(source[number]) == encode(document)
        assert index.key(number) == document.key
        assert (index.tasks[index.task[number]], index.sources[index.source[number]]) == (
            document.task,
            document.source,
        )
        for name, count in dataclasses.asdict(count_positions(document, samples.family)).items():
            assert getattr(index, name)[number] == count
    assert len(joined.index("validation")) == len(joined.source("validation")) == 3
    assert joined.tokenizer_path == a / "tokenizer"


def test_batches_are_made_of_all_directories(two_sets):
    a, b, _ = two_sets
    config = PipelineConfig(row_length=256, window_batches=1, reader_threads=0, prefetch_batches=0)
    joined = shards.open_shards(f"{a},{b}")
    rows = [row for n in range(2) for row in make_plan(config, joined, "train", 0, 4).batch(n)]
    assert {record >= 20 for row in rows for record in row.records.tolist()} == {True, False}
    (batch,) = itertools.islice(make_batches(config, joined, "train", 0, 4, 0, 0, 1), 1)
    assert batch["tokens"].shape == (4, 256) and (batch["document"] > 0).any(axis=1).all()


def test_fingerprint_is_of_every_manifest(two_sets):
    a, b, _ = two_sets
    found = [shards.open_shards(names).fingerprint for names in (str(a), str(b), f"{a},{b}", f"{b},{a}")]
    assert len(set(found)) == 4 and found[0] == file_sha256(a / "manifest.json")


def test_directories_of_version_1_join_without_the_columns_that_they_lack(samples, tmp_path):
    shutil.copytree(GOLDEN_V1, tmp_path / "old")
    samples.write(tmp_path / "new", {"train": samples.documents(4)})
    manifest = tmp_path / "new" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"text_size": 300', '"text_size": 70000'))
    index = shards.open_shards(f"{tmp_path / 'old'},{tmp_path / 'new'}").index("train")
    assert len(index) == 14 and index.pairs is None and len(index.inverted_context) == 14


def test_directories_of_other_tokenizers_are_refused_and_both_named(two_sets):
    a, b, _ = two_sets
    manifest = b / "manifest.json"
    manifest.write_text(manifest.read_text().replace("vision-a", "vision-b"))
    with pytest.raises(UserError, match=f"{a} and {b} do not belong.*vision tokenizer: vision-a and vision-b"):
        shards.open_shards(f"{a},{b}")


def test_a_directory_is_named_once(two_sets):
    a, _, _ = two_sets
    with pytest.raises(UserError, match="twice"):
        shards.open_shards(f"{a},{a}/../a")
    with pytest.raises(UserError, match="names no directory"):
        shards.open_shards(" ,")


def test_shards_whose_part_of_the_index_an_older_program_wrote_are_written_again(samples, tmp_path):
    path = tmp_path / shards.shard_file("train", 0, 1)
    shards.write_shard(path, samples.documents(3), samples.family)
    part = path.with_suffix(".index.npz")
    np.savez(part, keys=np.zeros(3), plain=np.zeros(3))
    assert not shards.is_written(path)
    with pytest.raises(UserError, match="index.npz is missing; extract again"):
        shards.finish_shards(tmp_path, {"train": [path]})


def test_damaged_record_is_broken_and_the_others_are_read(broken_shards):
    shard_set, documents, number = broken_shards
    source = shard_set.source("train")
    for i, document in enumerate(documents):
        if i == number:
            with pytest.raises(BrokenRecord):
                source[i]
        else:
            assert encode(source[i]) == encode(document)


def test_killed_writer_leaves_no_shard(samples, tmp_path):
    def killed():
        yield from samples.documents(3)
        raise KeyboardInterrupt

    path = tmp_path / shards.shard_file("train", 0, 1)
    with pytest.raises(KeyboardInterrupt):
        shards.write_shard(path, killed(), samples.family)
    assert not path.exists() and not shards.is_written(path)
    assert all(is_partial(left) for left in tmp_path.iterdir())
    shards.write_shard(path, samples.documents(3), samples.family)
    assert shards.is_written(path)

import dataclasses
import pickle
import shutil
import time
import tracemalloc

import numpy as np
import pytest

from nextflow_jax.data import index as indices
from nextflow_jax.data.index import DIRECTORY, IndexPart, Keys, join_indices, load_index, read_part, write_index
from nextflow_jax.data.segments import PositionCounts
from nextflow_jax.errors import UserError

COLUMNS = ("plain", "condition", "context", "inverted_context", "pairs", "context_pairs", "inverted_context_pairs")


def write(directory, samples, documents, per_part=5):
    """The index of these documents; returns the parts' files."""
    directory.mkdir()
    parts = []
    for start in range(0, len(documents), per_part):
        part = IndexPart(samples.family)
        for document in documents[start : start + per_part]:
            part.add(document)
        parts.append(directory / f"{start}.npz")
        part.save(parts[-1], f"digest {start}")
    write_index(directory, parts)
    return parts


@pytest.fixture
def documents(samples):
    made = samples.documents(12)
    return [dataclasses.replace(each, source=f"s{i % 3}", key=f"{'ü' * i}#{i}") for i, each in enumerate(made)]


@pytest.fixture
def directory(tmp_path, samples, documents):
    write(tmp_path / "shards", samples, documents)
    return tmp_path / "shards"


def test_keys_of_any_length_and_script():
    names = ["", "a", "ключ", "x" * 1000, "emoji/1F600#3"]
    keys = Keys.of(names)
    assert [keys[i] for i in range(len(keys))] == names
    assert [keys.take(1, 4)[i] for i in range(3)] == names[1:4]
    joined = Keys.joined([keys.take(2, 4), Keys.of(["b"]), keys])
    assert [joined[i] for i in range(len(joined))] == names[2:4] + ["b"] + names
    assert len(keys.data) == sum(len(name.encode()) for name in names)


def test_one_long_key_does_not_widen_the_others(samples, tmp_path):
    documents = [dataclasses.replace(each, key=f"k{i}") for i, each in enumerate(samples.documents(50))]
    documents[7] = dataclasses.replace(documents[7], key="k" * 100_000)
    write(tmp_path / "shards", samples, documents)
    assert (tmp_path / "shards" / DIRECTORY / "key_bytes.npy").stat().st_size < 101_000


def test_labels_are_numbered_over_all_parts(directory, documents):
    index = load_index(directory, 12)
    assert index.sources == ("s0", "s1", "s2") and index.tasks == tuple(sorted({each.task for each in documents}))
    for number, document in enumerate(documents):
        assert index.key(number) == document.key
        assert index.tasks[index.task[number]] == document.task
        assert index.sources[index.source[number]] == document.source


def test_columns_are_mapped_and_not_copied(directory):
    index = load_index(directory, 12)
    assert set(index.columns()) == {*COLUMNS, "task", "source"}
    for name, column in index.columns().items():
        assert isinstance(column.base, np.memmap), name
        assert type(column) is np.ndarray and not column.flags.writeable
    assert {index.columns()[name].dtype for name in COLUMNS if "pairs" in name} == {np.dtype(np.int64)}
    again = pickle.loads(pickle.dumps(index))
    assert np.array_equal(again.pairs, index.pairs) and again.key(3) == index.key(3)


def test_the_index_does_not_depend_on_the_parts(samples, tmp_path, documents):
    for per_part in (1, 5, 12):
        write(tmp_path / str(per_part), samples, documents, per_part)
    files = {path.name: path.read_bytes() for path in (tmp_path / "1" / DIRECTORY).iterdir()}
    for per_part in (5, 12):
        assert files == {path.name: path.read_bytes() for path in (tmp_path / str(per_part) / DIRECTORY).iterdir()}


def test_parts_say_what_the_manifest_needs(samples, tmp_path, documents):
    parts = write(tmp_path / "shards", samples, documents)
    found = [read_part(path) for path in parts]
    assert [part.records for part in found] == [5, 5, 2] and found[1].sha256 == "digest 5"
    assert sum(part.tokens for part in found) == load_index(tmp_path / "shards", 12).plain.sum()
    assert read_part(tmp_path / "nothing.npz") is None


def test_joined_indices_number_labels_anew(directory, documents, samples, tmp_path):
    others = [dataclasses.replace(each, source="a", key="o") for each in samples.documents(4, tasks=("text",))]
    write(tmp_path / "other", samples, others)
    parts = [load_index(directory, 12).take(2, 12), load_index(tmp_path / "other", 4)]
    joined = join_indices(parts)
    assert joined.sources == ("a", "s0", "s1", "s2")
    for number, document in enumerate([*documents[2:], *others]):
        assert joined.key(number) == document.key
        assert joined.tasks[joined.task[number]] == document.task
        assert joined.sources[joined.source[number]] == document.source
    for name in COLUMNS:
        assert np.array_equal(joined.columns()[name], np.concatenate([part.columns()[name] for part in parts]))
    without = dataclasses.replace(parts[1], pairs=None)
    assert join_indices([parts[0], without]).pairs is None
    assert join_indices([without]) is without


@pytest.mark.parametrize("file", ["plain.npy", "pairs.npy", "key_bytes.npy", "key_offsets.npy", "index.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "foreign"])
def test_unusable_files_are_named(damage, file, directory, samples, tmp_path):
    path = directory / DIRECTORY / file
    data = path.read_bytes()
    path.unlink()
    if damage == "foreign":
        write(tmp_path / "other", samples, samples.documents(3))
        path.write_bytes((tmp_path / "other" / DIRECTORY / file).read_bytes())
    elif damage != "missing":
        path.write_bytes(data[: len(data) - 4 if damage == "cut" else 0])
    with pytest.raises(UserError, match=f"{directory / DIRECTORY}.*(extract again|copy both)"):
        load_index(directory, 12)


def test_a_missing_index_is_named(directory):
    shutil.rmtree(directory / DIRECTORY)
    with pytest.raises(UserError, match="index is missing"):
        load_index(directory, 12)


def test_another_number_of_records_is_refused(directory):
    with pytest.raises(UserError, match="lists 12 records, the manifest 13"):
        load_index(directory, 13)


def test_a_changed_byte_is_found_by_full_verification(directory):
    path = directory / DIRECTORY / "plain.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    load_index(directory, 12)
    with pytest.raises(UserError, match="plain.npy is damaged: its SHA-256"):
        load_index(directory, 12, verify=True)


def test_a_million_documents_are_joined_in_bounded_memory_and_open_at_once(samples, tmp_path):
    """From four parts of a quarter of a million each: what NumPy allocates is of the order of one part."""
    directory, count = tmp_path / "shards", 250_000
    directory.mkdir()
    part = {name: np.arange(count) for name in (*COLUMNS, "task", "source")}
    part |= {"task": np.zeros(count, np.int64), "source": np.zeros(count, np.int64)}
    part |= {"tasks": np.asarray(["text"]), "sources": np.asarray(["s"]), "sha256": np.asarray("")}
    part |= {"key_lengths": np.full(count, 20), "key_bytes": np.full(20 * count, ord("k"), np.uint8)}
    np.savez(directory / "part.npz", **part)
    tracemalloc.start()
    write_index(directory, [directory / "part.npz"] * 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    started = time.perf_counter()
    index = load_index(directory, 4 * count)
    seconds = time.perf_counter() - started
    _, opened = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert index.key(999_999) == "k" * 20 and index.pairs[999_999] == count - 1
    assert seconds < 1
    assert opened < 2**20
    assert peak < 60 * count  # one part: nine columns of 8 bytes and 20 of the key, never all of them at once


def test_every_count_of_a_document_has_its_column():
    assert {field.name for field in dataclasses.fields(PositionCounts)} == {*indices._LENGTHS, *indices._PAIRS}

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest

from nextflow_jax.data import index as indices
from nextflow_jax.data import records, shards
from nextflow_jax.data.inspect.shard_check import check_shards
from nextflow_jax.data.segments import count_positions
from nextflow_jax.errors import UserError
from tests.data.inspect.conftest import damage, reads_nothing

GOLDEN_V1 = pathlib.Path(__file__).parents[2] / "goldens" / "shards_v1"


def table(findings, title):
    (found,) = [each for each in findings.tables if each.title == title]
    return [dict(zip(found.header, row)) for row in found.rows]


def number(text):
    return int(text.replace(",", ""))


def rewrite_column(directory, name, change):
    path = directory / indices.DIRECTORY / f"{name}.npy"
    column = np.load(path)
    change(column)
    np.save(path, column)


def test_whole_shards_are_whole_and_counted(shard_directory, samples):
    findings = check_shards(shard_directory)
    assert findings.broken == () and findings.checked == findings.records == 24
    opened = shards.open_shards(shard_directory)
    documents = [(split, opened.source(split)[i]) for split, n in (("train", 20), ("validation", 4)) for i in range(n)]
    for row in table(findings, "Documents"):
        same = [each for split, each in documents if (split, each.task, each.source) == tuple(row.values())[:3]]
        assert number(row["records"]) == len(same) > 0
    assert sum(number(row["records"]) for row in table(findings, "Documents")) == 24
    assert table(findings, "Licences") == [{"licence": "CC0", "records": "24"}]
    for row in table(findings, "Positions of a document"):
        split, task = row["split and task"].split(" ")
        lengths = [
            count_positions(each, samples.family).plain
            for where, each in documents
            if (where, each.task) == (split, task)
        ]
        assert (number(row["sum"]), number(row["least"]), number(row["most"])) == (
            sum(lengths),
            min(lengths),
            max(lengths),
        )


def test_codes_are_counted_by_scale_and_task(shard_directory, samples):
    findings = check_shards(shard_directory)
    opened = shards.open_shards(shard_directory)
    images = [
        (each.task, segment, samples.family.schedule(segment.size))
        for split in ("train", "validation")
        for each in map(opened.source(split).__getitem__, range(len(opened.index(split))))
        for segment in each.segments
        if isinstance(segment, records.EncodedImage)
    ]
    rows = table(findings, "Codes of each scale")
    assert [row["scale"] for row in rows] == ["1", "2", "3"]
    for scale, row in enumerate(rows):
        parts = [(task, image.inputs[s.slice(scale)], image.targets[s.slice(scale)]) for task, image, s in images]
        targets = np.concatenate([each[2] for each in parts])
        differ = np.concatenate([each[1] != each[2] for each in parts])
        assert number(row["codes"]) == len(targets)
        assert number(row["edit"]) == sum(len(each[2]) for each in parts if each[0] == "edit")
        assert number(row["different"]) == len(np.unique(targets))
        assert row["inputs differ"] == f"{differ.mean():.1%}"
    corrected = np.mean([(image.inputs != image.targets).any() for _, image, _ in images])
    assert f"{corrected:.1%}" in [row["value"] for row in table(findings, "Pictures")] and 0 < corrected < 1


def test_texts_are_counted_by_task(shard_directory):
    rows = table(check_shards(shard_directory), "Text tokens of a document")
    assert sum(number(row["text"]) for row in rows) == 6
    assert sum(number(count) for row in rows for name, count in row.items() if name != "text tokens") == 24


def test_a_damaged_record_is_named_with_its_place_and_its_file(shard_directory):
    path = shard_directory / shards.shard_file("train", 1, 2)
    damage(path, lambda: reads_nothing(shards.open_shards(shard_directory).source("train"), 13))
    findings = check_shards(shard_directory)
    of_file, of_record = findings.broken
    assert of_file.key == path.name and "SHA-256" in of_file.reason
    assert of_record.key == "d13#0" and of_record.where == f"train, record 3 of {path.name}"
    assert findings.checked == 24 and sum(number(row["records"]) for row in table(findings, "Documents")) == 23


def test_a_shard_of_zeros_breaks_all_of_its_records(shard_directory):
    path = shard_directory / shards.shard_file("train", 0, 2)
    path.write_bytes(bytes(path.stat().st_size))
    broken = check_shards(shard_directory).broken
    assert [each.key for each in broken] == [path.name, *(f"d{i}#0" for i in range(10))]


def rewritten(directory, samples, change):
    """Shards of which the index is of other documents than the records: `change` makes the first of `samples`."""
    documents = samples.documents(6)
    samples.write(directory, {"train": documents})
    other = directory.with_name("other")
    samples.write(other, {"train": [change(documents[0]), *documents[1:]]})
    shutil.rmtree(directory / indices.DIRECTORY)
    shutil.copytree(other / indices.DIRECTORY, directory / indices.DIRECTORY)
    return check_shards(directory).broken


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key": "e0"}, "key 'd0#0', the index says 'e0'"),
        ({"task": "frames"}, "task 'text_to_image', the index says 'frames'"),
        ({"source": "zoo"}, "source '', the index says 'zoo'"),
    ],
)
def test_an_index_of_other_documents_is_found(change, reason, samples, tmp_path):
    (broken,) = rewritten(tmp_path / "shards", samples, lambda document: dataclasses.replace(document, **change))
    assert reason in broken.reason


def test_other_lengths_than_the_index_says_are_found(samples, tmp_path):
    def longer(document):
        words, *others = document.segments
        ids = np.concatenate([words.ids, words.ids])
        return dataclasses.replace(document, segments=(dataclasses.replace(words, ids=ids), *others))

    (broken,) = rewritten(tmp_path / "shards", samples, longer)
    assert broken.key == "d0#0" and broken.reason.startswith("plain is ")


def test_other_visible_pairs_alone_are_found(samples, tmp_path):
    samples.write(tmp_path / "shards", {"train": samples.documents(4)})
    path = tmp_path / "shards" / indices.DIRECTORY / indices.NAMES_FILE
    column = path.with_name("pairs.npy")
    before = indices.file_sha256(column)
    rewrite_column(tmp_path / "shards", "pairs", lambda values: values.__setitem__(2, 7))
    path.write_text(path.read_text().replace(before, indices.file_sha256(column)))
    (broken,) = check_shards(tmp_path / "shards").broken
    assert broken.key == "d2#0" and broken.reason.endswith("the index says 7")


def test_a_number_of_no_task_is_a_broken_record(samples, tmp_path):
    samples.write(tmp_path / "shards", {"train": samples.documents(4)})
    rewrite_column(tmp_path / "shards", "task", lambda values: values.__setitem__(3, 9))
    (broken,) = check_shards(tmp_path / "shards", max_records=4).broken
    assert broken.key == "d3#0" and "number 9 of 4" in broken.reason


def test_a_changed_index_is_refused_by_name(shard_directory):
    rewrite_column(shard_directory, "plain", lambda values: values.__setitem__(0, 1))
    with pytest.raises(UserError, match="plain.npy is damaged"):
        check_shards(shard_directory)


def test_indices_outside_the_vocabulary_and_unknown_sizes_are_found(samples, tmp_path):
    documents = samples.documents(8)
    image = documents[0].segments[1]
    outside = dataclasses.replace(image, targets=np.full_like(image.targets, 40), inputs=image.inputs)
    documents[4] = dataclasses.replace(documents[0], key="d4#0", segments=(documents[0].segments[0], outside))
    samples.write(tmp_path / "shards", {"train": documents})
    (broken,) = check_shards(tmp_path / "shards").broken
    assert broken.key == "d4#0" and "index 40 is outside 0..39" in broken.reason


def test_some_records_are_evenly_spread(shard_directory):
    findings = check_shards(shard_directory, max_records=6)
    assert 6 <= findings.checked <= 7 and findings.records == 24 and not findings.broken
    assert {row["split"] for row in table(findings, "Documents")} == {"train", "validation"}


def test_shards_of_version_1_are_checked(tmp_path):
    findings = check_shards(GOLDEN_V1)
    assert findings.broken == () and findings.checked == 14
    copy = shutil.copytree(GOLDEN_V1, tmp_path / "copy")
    columns = dict(np.load(copy / "index.npz"))
    columns["context"][2] += 1
    np.savez(copy / "index.npz", **columns)
    (broken,) = check_shards(copy).broken
    assert broken.key == "d2#0" and broken.reason.startswith("context is ")


def test_missing_shards_are_refused(shard_directory):
    (shard_directory / shards.shard_file("train", 0, 2)).unlink()
    with pytest.raises(UserError, match="is missing"):
        check_shards(shard_directory)

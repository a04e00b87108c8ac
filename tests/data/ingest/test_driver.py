import dataclasses
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from nextflow_jax.data.corpus.reader import open_corpus
from nextflow_jax.data.filters.config import DuplicatesConfig, FiltersConfig, PictureFilter, TextFilter
from nextflow_jax.data.ingest.config import IngestConfig, SourceConfig
from nextflow_jax.data.ingest.driver import STATE_FILE, ingest
from nextflow_jax.errors import UserError
from tests.data.ingest.conftest import encode_picture, write_pairs

SMALL_UNITS = 300
"""Bytes: four or five of the lines that write_pairs makes."""


def make_config(*paths, workers=1, unit_bytes=SMALL_UNITS, **settings):
    source = SourceConfig(name="pairs", paths=tuple(map(str, paths)), unit_bytes=unit_bytes)
    return IngestConfig(sources=(source,), workers=workers, **{"validation_share": 0.2, **settings})


def contents(directory):
    """Every file's bytes by name."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def keys(directory, split):
    source = open_corpus(directory).source(split)
    return [source[i].key for i in range(len(source))]


def test_every_document_is_in_one_split_in_the_order_of_the_files(pairs, tmp_path):
    ingested = ingest(make_config(pairs), tmp_path / "out")
    train, validation = keys(tmp_path / "out", "train"), keys(tmp_path / "out", "validation")
    assert sorted([*train, *validation]) == sorted(f"pairs/{i}" for i in range(30))
    numbers = [int(key.partition("/")[2]) for key in train]
    assert numbers == sorted(numbers) and validation
    assert ingested.manifest.read == {"pairs": 30} and not ingested.manifest.dropped
    assert len(ingested.manifest.parts) > 3
    source = open_corpus(tmp_path / "out").source("train")
    assert source[0].segments[1].data == (pairs.parent / "images" / f"{numbers[0]}.png").read_bytes()


def test_the_bytes_do_not_depend_on_the_number_of_workers(pairs, tmp_path):
    for workers in (1, 2):
        ingest(make_config(pairs, workers=workers), tmp_path / str(workers))
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_machines_that_share_a_folder_write_what_one_does(pairs, tmp_path):
    ingest(make_config(pairs), tmp_path / "one")
    first = ingest(make_config(pairs), tmp_path / "many", process=2, processes=3)
    assert first.manifest is None and first.waiting_for > 1
    ingest(make_config(pairs), tmp_path / "many", process=0, processes=3)
    last = ingest(make_config(pairs), tmp_path / "many", process=1, processes=3)
    assert last.manifest is not None
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_the_split_of_a_document_stays_when_others_are_added(pairs, tmp_path):
    ingest(make_config(pairs), tmp_path / "few")
    more = write_pairs(pairs.parent, 30, first=30, name="more.jsonl")
    ingest(make_config(pairs, more), tmp_path / "many")
    assert set(keys(tmp_path / "few", "validation")) <= set(keys(tmp_path / "many", "validation"))
    assert set(keys(tmp_path / "few", "train")) <= set(keys(tmp_path / "many", "train"))


def test_a_source_may_name_its_split(pairs, tmp_path):
    held = write_pairs(pairs.parent, 5, first=100, name="held.jsonl")
    sources = (
        SourceConfig(name="pairs", paths=(str(pairs),)),
        SourceConfig(name="held", paths=(str(held),), split="heldout"),
    )
    ingest(IngestConfig(sources=sources, validation_share=0.0, workers=1), tmp_path / "out")
    assert keys(tmp_path / "out", "heldout") == [f"held/{i}" for i in range(100, 105)]
    assert len(keys(tmp_path / "out", "train")) == 30


def test_a_finished_ingest_is_left_as_it_is(pairs, tmp_path):
    config = make_config(pairs)
    ingest(config, tmp_path / "out")
    before = contents(tmp_path / "out")
    assert ingest(config, tmp_path / "out").finished_before
    assert contents(tmp_path / "out") == before


def test_another_ingest_into_the_folder_is_refused_with_what_differs(pairs, tmp_path):
    ingest(make_config(pairs), tmp_path / "out")
    with pytest.raises(UserError, match="config.seed was 0, is 1"):
        ingest(make_config(pairs, seed=1), tmp_path / "out")


def test_files_that_changed_are_noticed(pairs, tmp_path):
    ingest(make_config(pairs), tmp_path / "out")
    pairs.write_text(pairs.read_text() + json.dumps({"text": "one more"}) + "\n")
    with pytest.raises(UserError, match="files was"):
        ingest(make_config(pairs), tmp_path / "out")


def test_drops_are_counted_by_source_and_reason(tmp_path):
    path = write_pairs(tmp_path / "source", 10)
    (tmp_path / "source" / "images" / "3.png").write_bytes(encode_picture(3, (20, 20)))
    (tmp_path / "source" / "images" / "4.png").write_bytes(encode_picture(5))
    (tmp_path / "source" / "images" / "6.png").write_bytes(b"")
    lines = path.read_text().splitlines()
    lines[7] = json.dumps({"id": "2", "text": "the key of another"})
    lines[8] = json.dumps({"id": "8", "image": "images/8.png", "text": "кошка"})
    path.write_text("\n".join(lines))
    filters = FiltersConfig(
        pictures=PictureFilter(min_side=24),
        texts=TextFilter(scripts=("Latin",)),
        duplicates=DuplicatesConfig(same_pictures=True),
    )
    manifest = ingest(
        make_config(path, filters=filters, max_broken_share=0.1, validation_share=0.0), tmp_path / "out"
    ).manifest
    assert manifest.dropped == {
        "pairs": {"empty": 1, "other script": 1, "small picture": 1},
        "*": {"repeated key": 1, "repeated pictures": 1},
    }
    assert manifest.splits == {"train": 5, "validation": 0, "heldout": 0}
    assert keys(tmp_path / "out", "train") == [f"pairs/{i}" for i in (0, 1, 2, 4, 9)]


def test_damaged_pictures_are_found_while_they_are_decoded(tmp_path):
    path = write_pairs(tmp_path / "source", 4)
    image = tmp_path / "source" / "images" / "1.png"
    image.write_bytes(image.read_bytes()[:-60])
    manifest = ingest(make_config(path, max_broken_share=0.5), tmp_path / "out").manifest
    assert manifest.dropped == {"pairs": {"damaged": 1}}


def test_too_many_broken_documents_are_an_error_and_a_larger_share_goes_on(tmp_path):
    path = write_pairs(tmp_path / "source", 30)
    for i in range(3):
        (tmp_path / "source" / "images" / f"{i}.png").unlink()
    with pytest.raises(UserError, match=r"pairs: 3 of 30 documents are broken \(missing file 3\)"):
        ingest(make_config(path, max_broken_share=0.05), tmp_path / "out")
    parts = {name: data for name, data in contents(tmp_path / "out").items() if name.endswith("array_record")}
    assert parts
    ingest(make_config(path, max_broken_share=0.1), tmp_path / "out")
    assert parts.items() <= contents(tmp_path / "out").items()


@pytest.mark.parametrize(
    "format, name",
    [("jsonl", "a.jsonl"), ("webdataset", "a.tar"), ("webdataset", "a.tar.gz"), ("parquet", "a.parquet"),
     ("llava", "a.json"), ("llava", "a.jsonl"), ("tfds", "a.array_record")],
)  # fmt: skip
def test_files_without_bytes_are_counted(pairs, tmp_path, format, name):
    (tmp_path / name).write_bytes(b"")
    empty = SourceConfig("empty", format, (str(tmp_path / name),))
    config = make_config(pairs, max_broken_share=1.0, validation_share=0.0)
    config = dataclasses.replace(config, sources=(*config.sources, empty))
    manifest = ingest(config, tmp_path / "out").manifest
    assert manifest.dropped == {"empty": {"empty": 1}} and manifest.read == {"pairs": 30, "empty": 1}
    with pytest.raises(UserError, match=r"source empty: 1 of 1 documents are broken \(empty 1\)"):
        ingest(dataclasses.replace(config, max_broken_share=0.5), tmp_path / "refused")


def test_unreadable_files_stop_the_ingest_last_and_may_be_left_out(pairs, tmp_path):
    """The others are read and stay; what a damaged file gives before its damage stays too."""
    texts = "".join(json.dumps({"text": f"text {i} {'x' * 200}"}) + "\n" for i in range(200))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(texts.encode(), 0)[:-10_000])
    (tmp_path / "b.tar").write_bytes(b"no tar" * 1000)
    sources = (
        SourceConfig("lines", "jsonl", (str(tmp_path / "a.jsonl.gz"),)),
        SourceConfig("tars", "webdataset", (str(tmp_path / "b.tar"),)),
    )
    config = make_config(pairs, max_broken_share=1.0)
    config = dataclasses.replace(config, sources=(*sources, *config.sources), max_unreadable_files=1)
    with pytest.raises(UserError, match=r"2 files cannot be read \(.*a\.jsonl\.gz.*b\.tar.*allows 1; raise it"):
        ingest(config, tmp_path / "out")
    before = {name: data for name, data in contents(tmp_path / "out").items() if name.endswith("array_record")}
    assert len(before) > 3
    manifest = ingest(dataclasses.replace(config, max_unreadable_files=2), tmp_path / "out").manifest
    assert before.items() <= contents(tmp_path / "out").items()
    assert manifest.dropped == {"lines": {"unreadable source": 1}, "tars": {"unreadable source": 1}}
    assert manifest.read["pairs"] == 30 and manifest.read["tars"] == 1 and 100 < manifest.read["lines"] < 200


def test_a_trial_reads_some_documents_of_every_unit(pairs, tmp_path):
    source = SourceConfig(name="pairs", paths=(str(pairs),), unit_bytes=SMALL_UNITS, documents_per_unit=2)
    manifest = ingest(IngestConfig(sources=(source,), workers=1), tmp_path / "out").manifest
    assert [part.records for part in manifest.parts] == [2] * len(manifest.parts)


def test_files_that_keys_could_not_tell_apart_are_refused(tmp_path):
    paths = [write_pairs(tmp_path / name, 2) for name in "ab"]
    with pytest.raises(UserError, match="would both be called 'pairs.jsonl'; name both by one pattern"):
        ingest(make_config(*paths), tmp_path / "out")
    ingest(make_config(tmp_path / "*" / "pairs.jsonl"), tmp_path / "out2")
    assert sorted(keys(tmp_path / "out2", "train")) == ["pairs/0", "pairs/1"]


def test_keys_stay_when_a_source_moves(tmp_path):
    found = []
    for folder in ("here", "there"):
        path = write_pairs(tmp_path / folder / "deep", 3)
        path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(3)))
        ingest(make_config(tmp_path / folder / "**" / "*.jsonl"), tmp_path / f"{folder}-out")
        found.append(keys(tmp_path / f"{folder}-out", "train"))
    assert found[0] == found[1] and found[0][0] == "pairs/deep/pairs.jsonl/0"


@pytest.mark.parametrize("paths, message", [(["none.jsonl"], "names no file"), ([], "names no files")])
def test_a_source_without_files_is_an_error(tmp_path, paths, message):
    with pytest.raises(UserError, match=message):
        ingest(make_config(*(tmp_path / path for path in paths)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("process, processes", [(1, 1), (-1, 2), (0, 0)])
def test_processes_are_numbered_from_0(pairs, tmp_path, process, processes):
    with pytest.raises(UserError, match="numbered from 0"):
        ingest(make_config(pairs), tmp_path / "out", process=process, processes=processes)


def test_kills_at_any_time_change_nothing(tmp_path):
    """Real kill -9 of the command and its workers, until it is done."""
    path = write_pairs(tmp_path / "source", 60)
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        textwrap.dedent(f"""
        from nextflow_jax.config import to_config_dict
        from nextflow_jax.data.ingest.config import IngestConfig, SourceConfig

        def get_config(variant):
            source = SourceConfig(name="pairs", paths=({str(path)!r},), unit_bytes={SMALL_UNITS})
            return to_config_dict(IngestConfig(sources=(source,), workers=2))
        """)
    )
    command = [sys.executable, "-m", "nextflow_jax.data.ingest", "--config", str(experiment), "--out"]
    start = time.monotonic()
    subprocess.run([*command, str(tmp_path / "undisturbed")], check=True, capture_output=True)
    whole = time.monotonic() - start
    rng, kills = random.Random(0), 0
    while kills < 4:
        process = subprocess.Popen(
            [*command, str(tmp_path / "killed")],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(rng.uniform(0.3, 0.9) * whole)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        kills += 1
    subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True)
    assert not (tmp_path / "killed" / STATE_FILE).exists()
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")

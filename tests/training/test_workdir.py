"""A run's folder, and which configuration may continue it."""

import dataclasses
import errno
import os

import jax
import numpy as np
import pytest

from nextflow_jax.config import to_plain_dict
from nextflow_jax.errors import TransientError, UserError
from nextflow_jax.training.experiment import ContrastiveExperiment
from nextflow_jax.training.workdir import check_resume, prepare_workdir, require_space

EXPERIMENT = ContrastiveExperiment()
META = {"step": 5, "config": to_plain_dict(EXPERIMENT), "fingerprints": {"pictures": "a"}}


def with_model(**fields):
    return dataclasses.replace(EXPERIMENT, model=dataclasses.replace(EXPERIMENT.model, **fields))


def test_made_with_its_parents(tmp_path):
    folder = prepare_workdir(tmp_path / "a" / "b")
    assert folder.is_dir() and not list(folder.iterdir())


def test_fields_that_an_older_version_did_not_know():
    config = to_plain_dict(EXPERIMENT)
    del config["recovery"], config["init_from"]["grow"]
    check_resume(EXPERIMENT, {"pictures": "a"}, {**META, "config": config})


def test_no_room_for_a_checkpoint(tmp_path):
    require_space(tmp_path, {"w": jax.ShapeDtypeStruct((10,), np.float32)})
    too_much = {"w": jax.ShapeDtypeStruct((10**9, 10**9), np.float32)}
    with pytest.raises(UserError, match="iB are free, and a checkpoint takes up to 3725290298.46 GiB; make room"):
        require_space(tmp_path, too_much)
    with pytest.raises(TransientError, match="the last checkpoint stays; make room, and start again"):
        require_space(tmp_path, too_much, resumed=True)


def test_a_full_disk_stops_for_good_only_before_the_first_checkpoint(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device.*choose another folder"):
        prepare_workdir(tmp_path)
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    with pytest.raises(TransientError, match="No space left on device; the last checkpoint stays"):
        prepare_workdir(tmp_path)


def test_a_url_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--workdir gs://bucket/run: is a URL, not a folder; mount the bucket"):
        prepare_workdir("gs://bucket/run")
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .*choose another folder"):
        prepare_workdir(tmp_path / "file" / "run")


def test_length_and_precision_may_change():
    changed = with_model(dtype="bfloat16")
    train = dataclasses.replace(EXPERIMENT.train, steps=7, batch_size=4)
    assert check_resume(dataclasses.replace(changed, train=train), {"pictures": "a"}, META) == [
        "config.model.dtype was 'float32' and is 'bfloat16'",
        "config.train.batch_size was 16 and is 4",
        "config.train.steps was 1000 and is 7",
    ]


def test_every_difference_is_listed():
    with pytest.raises(UserError) as error:
        check_resume(with_model(embedding_dim=8, max_text_tokens=9), {"pictures": "b", "teacher": "c"}, META)
    for part in (
        "step 5",
        "config.model.embedding_dim was 64 and is 8",
        "config.model.max_text_tokens was 24 and is 9",
        "fingerprint.pictures was 'a' and is 'b'",
        "fingerprint.teacher was 'absent' and is 'c'",
    ):
        assert part in str(error.value)

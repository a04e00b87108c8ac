import json

import pytest

from nextflow_jax.data.claim import claim
from nextflow_jax.errors import UserError

MADE_FROM = {"seed": 0, "config": {"draws": 2}}


def test_a_new_folder_is_claimed_and_claimed_again_by_the_same_run(tmp_path):
    out = tmp_path / "a" / "b"
    assert not claim(out, "state.json", MADE_FROM, None, "shards")
    assert json.loads((out / "state.json").read_text()) == MADE_FROM
    assert not claim(out, "state.json", MADE_FROM, None, "shards")


def test_another_run_is_refused_with_what_differs(tmp_path):
    claim(tmp_path / "out", "state.json", MADE_FROM, None, "shards")
    with pytest.raises(UserError, match=r"config.draws was 2, is 3; seed was 0, is 1"):
        claim(tmp_path / "out", "state.json", {"seed": 1, "config": {"draws": 3}}, None, "shards")


def test_a_finished_folder_is_compared_with_what_it_was_made_from(tmp_path):
    assert claim(tmp_path, "state.json", MADE_FROM, MADE_FROM, "corpora")
    with pytest.raises(UserError, match="holds corpora made from other inputs"):
        claim(tmp_path, "state.json", MADE_FROM, {**MADE_FROM, "seed": 5}, "corpora")


def test_somebody_elses_folder_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files that are no corpora"):
        claim(tmp_path, "state.json", MADE_FROM, None, "corpora")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_a_killed_writer_left_is_nobodys(tmp_path):
    (tmp_path / ".partial-1234-state.json").write_text("{")
    assert not claim(tmp_path, "state.json", MADE_FROM, None, "corpora")


def test_a_damaged_state_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(UserError, match="state.json is not readable"):
        claim(tmp_path, "state.json", MADE_FROM, None, "corpora")


def test_what_is_no_folder_or_cannot_be_made_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="is no folder that can be written"):
            claim(out, "state.json", MADE_FROM, None, "corpora")
    assert (tmp_path / "file").read_text() == "mine"

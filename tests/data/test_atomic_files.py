import hashlib

import pytest

from nextflow_jax.data.atomic_files import file_sha256, is_partial, remove_partials, write_atomically


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "file"

    def write(partial):
        partial.write_text("half")
        assert not path.exists() and is_partial(partial)
        partial.write_text("whole")

    write_atomically(path, write)
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(partial):
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file"

    def outer(partial):
        partial.write_text("outer")
        write_atomically(path, lambda inner: inner.write_text("inner"))
        assert path.read_text() == "inner"

    write_atomically(path, outer)
    assert path.read_text() == "outer"


def test_only_partial_files_are_removed(tmp_path):
    (tmp_path / ".partial-00-file").write_text("half")
    (tmp_path / "file").write_text("whole")
    remove_partials(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_sha256_is_that_of_the_bytes(tmp_path):
    data = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(data)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()

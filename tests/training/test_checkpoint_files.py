"""Checksums find a changed byte, a shorter file and a missing one, whichever process looks."""

import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.training.checkpoint_files import damage, is_checked, require_whole, tree_bytes, write_checksums


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "state" / "d").mkdir(parents=True)
    for number in range(5):
        (tmp_path / "state" / "d" / str(number)).write_bytes(bytes(range(90 - number)))
    (tmp_path / "meta").write_text("{}")
    return tmp_path


def spoil_byte(path):
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)


SPOIL = {
    "has changed since it was written": spoil_byte,
    "has 10 bytes instead of 87": lambda path: path.write_bytes(path.read_bytes()[:10]),
    "No such file": lambda path: path.unlink(),
}


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("message", SPOIL)
def test_damage_is_named(folder, parts, message):
    for part in range(parts):
        assert not is_checked(folder)
        write_checksums(folder, part, parts)
    assert is_checked(folder) and not damage(folder)
    require_whole(folder)
    SPOIL[message](folder / "state" / "d" / "3")
    problems = [damage(folder, part, 2) for part in range(2)]
    assert sorted(map(bool, problems)) == [False, True]
    assert message in "".join(problems) and str(folder / "state" / "d" / "3") in "".join(problems)
    with pytest.raises(UserError, match="is damaged: .*use another step, or a copy of the file"):
        require_whole(folder)


def test_without_checksums_nothing_is_known(folder):
    assert not damage(folder) and not is_checked(folder)
    assert tree_bytes(folder) == sum(90 - number for number in range(5)) + 2


def test_a_spoilt_list_of_checksums(folder):
    write_checksums(folder, 0, 1)
    (folder / "checksums-00000-of-00001.json").write_text('{"meta": [2')
    assert "checksums-00000-of-00001.json cannot be read" in damage(folder)

import subprocess
import sys

import pytest

from nextflow_jax.data import shards
from nextflow_jax.data.inspect.__main__ import main
from nextflow_jax.errors import UserError, run_entry_point


def test_shards_are_printed_and_shown(shard_directory, tmp_path, capsys):
    main([str(shard_directory), "--html", str(tmp_path / "new" / "page.html"), "--samples", "8"])
    said = capsys.readouterr().out
    for title in ("Splits", "Documents", "Codes of each scale", "Text tokens of a document", "bytes a token"):
        assert title in said
    assert f"{shard_directory}: 24 of 24 records read, 0 broken" in said
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!doctype html>")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_a_corpus_is_told_from_shards(corpus_directory, tmp_path, capsys):
    main([str(corpus_directory), "--html", str(tmp_path / "page.html")])
    said = capsys.readouterr().out
    assert "Dropped documents" in said and "9 of 9 records read, 0 broken" in said


def test_broken_records_are_listed_and_the_status_is_1(shard_directory, tmp_path, capsys):
    path = shard_directory / shards.shard_file("train", 1, 2)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(SystemExit) as exit_:
        run_entry_point(main, [str(shard_directory), "--html", str(tmp_path / "page.html")])
    said = capsys.readouterr()
    assert exit_.value.code == 1
    keys = [line.split()[1] for line in said.out.splitlines() if line.startswith("broken: ")]
    assert keys == [path.name, *(f"d{i}#0" for i in range(10, 20))]
    assert "error: 11 records or files of" in said.err and "extract again" in said.err
    assert (tmp_path / "page.html").is_file()


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="manifest.json is missing"):
        main([str(tmp_path)])


@pytest.mark.parametrize("flag", ["--samples", "--max-records"])
def test_numbers_below_1_are_refused(flag, shard_directory):
    with pytest.raises(UserError, match=f"{flag} 0"):
        main([str(shard_directory), flag, "0"])


def test_help_waits_for_neither_jax_nor_grain():
    code = (
        "import sys\nfrom nextflow_jax.data.inspect.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    print(sorted({'jax', 'grain'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]" and "--max-records" in said

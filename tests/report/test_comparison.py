import pathlib
import re

import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.report import __main__ as report
from nextflow_jax.report.comparison import name_runs
from tests.report.tokenizer_runs import check_page, make_run


def test_runs_stand_side_by_side(tmp_path, capsys):
    one, two = make_run(tmp_path / "dual"), make_run(tmp_path / "single", 1.5, codes=128)
    report.main([str(one), str(two), "--out", str(tmp_path / "page")])
    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    found = check_page(text)
    assert "page/index.html" in capsys.readouterr().out
    rows = re.findall(r"<tr><td>(.*?)</td><td.*?>(.*?)</td><td.*?>(.*?)</td></tr>", text)
    assert ("Reconstruction PSNR, validation pictures (dB)", "20.50", "22.00") in rows
    assert ("Reconstruction PSNR, training pictures (dB), 4x8", "19.25", "20.75") in rows
    assert ("model.codes", "64", "128") in rows and not any(row[0] == "seed" for row in rows)
    # Four pictures a split: the original, and copy and error of both; the first three also after three scales of both.
    assert sum(tag == "img" for tag, _ in found) == 2 * (4 * (1 + 2 * 2) + 3 * 2 * 3)
    assert "Not measured alike" not in text and "Over seeds</h2>" not in text
    assert "dual: 20.0 dB" in text and "single: 21.5 dB" in text


def test_runs_measured_on_other_pictures_are_said_to_be(tmp_path):
    one, two = make_run(tmp_path / "a"), make_run(tmp_path / "b", pictures_name="q")
    report.main([str(one), str(two), "--out", str(tmp_path)])
    assert "Not measured alike: made_from.pictures" in (tmp_path / "index.html").read_text()


def test_runs_that_differ_in_their_seed_alone_are_averaged(tmp_path):
    runs = [make_run(tmp_path / f"dual_{seed}", float(seed), seed=seed) for seed in range(3)]
    runs.append(make_run(tmp_path / "single_0", 5.0, codes=128))
    report.main([*map(str, runs), "--out", str(tmp_path)])
    text = (tmp_path / "index.html").read_text()
    header = re.findall(r"<th>.*?</th><th class=\"number\">(.*?)</th><th class=\"number\">(.*?)</th></tr>", text)
    assert ("dual (3)", "single_0 (1)") in header
    # PSNR 20.5, 21.5 and 22.5.
    assert re.search(r"PSNR, validation pictures \(dB\)</td><td[^>]*>21.50 ± 1.000</td><td[^>]*>25.50</td>", text)


def test_names_are_the_shortest_that_differ(tmp_path):
    folders = [tmp_path / name for name in ("dual/seed0", "single/seed0", "dual/seed1")]
    assert list(name_runs(folders)) == ["dual/seed0", "single/seed0", "dual/seed1"]
    assert list(name_runs(folders[1:])) == ["seed0", "seed1"]
    with pytest.raises(UserError, match="more than once"):
        name_runs([folders[0], folders[0]])


def test_a_comparison_goes_where_it_is_asked_for_when_nothing_else_is_said(tmp_path, monkeypatch):
    runs = [str(make_run(tmp_path / name)) for name in "ab"]
    monkeypatch.chdir(tmp_path)
    report.main(runs)
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("index.html")] == [pathlib.Path("report/index.html")]


def test_mistakes_are_one_clear_message(tmp_path):
    one, bare = make_run(tmp_path / "a"), tmp_path / "b"
    bare.mkdir()
    with pytest.raises(UserError, match="nor a tokenizer evaluation there.*nextflow_jax.evaluate"):
        report.main([str(one), str(bare), "--out", str(tmp_path / "page")])

"""Training runs of any kind on one page: written by hand, read back from the page."""

import json
import re

import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.report import __main__ as report
from nextflow_jax.report.goodput_section import goodput, restarts
from nextflow_jax.report.run_comparison import training_runs
from tests.report.tokenizer_runs import HOSTILE, check_page, make_run

SECONDS = ({"init": 5.0, "step": 10.0}, {"restore": 5.0, "step": 20.0})


def make_training_run(folder, kind="decoder", loss=2.0, **changed):
    """Twenty steps of a decoder or contrastive run, killed after step 12 and started again from step 10."""
    folder.mkdir(parents=True)
    config = {
        "kind": kind,
        "seed": 0,
        "train": {"steps": 20, "batch_size": 4},
        "optimizer": {"learning_rate": 1e-3, **changed},
    }
    (folder / "config.json").write_text(json.dumps(config))
    records = [
        {
            "step": step,
            "loss": loss / step,
            "cross_entropy/text": loss,
            **{f"cross_entropy/scale_{k:02d}": loss + k for k in (1, 2, 3)},
            "grad_norm/attention": 0.5,
            "tokens_per_s": 100.0 * step,
            "step_ms": 12.5,
        }
        for step in (5, 10, 15, 20)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    entries = [
        {"attempt": 1, "begin": 100.0, "end": 115.0, "first": 0, "last": 12, "seconds": SECONDS[0]},
        {"attempt": 2, "begin": 125.0, "end": 150.0, "first": 10, "last": 20, "seconds": SECONDS[1]},
    ]
    (folder / "goodput.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def page_of(folders, out):
    report.main([*map(str, folders), "--out", str(out)])
    text = (out / "index.html").read_text(encoding="utf-8")
    check_page(text)
    return text


def test_decoder_runs_stand_side_by_side(tmp_path):
    runs = [make_training_run(tmp_path / "a"), make_training_run(tmp_path / "b", loss=4.0, learning_rate=5e-4)]
    text = page_of(runs, tmp_path / "page")
    rows = re.findall(r"<tr><td>(.*?)</td><td.*?>(.*?)</td><td.*?>(.*?)</td></tr>", text)
    assert ("loss", "0.100", "0.200") in rows and ("tokens_per_s, median", "1250.00", "1250.00") in rows
    assert ("optimizer.learning_rate", "0.001", "0.0005") in rows and ("steps", "20 of 20", "20 of 20") in rows
    assert ("times started again", "1", "1") in rows
    for title in ("decoder: loss", "decoder: cross-entropy, scale 03", "gradient norm, attention", "tokens a second"):
        assert f"{title}</text>" in text, title
    assert "Results</h2>" not in text and "a run was started again there" in text


def test_kinds_are_drawn_apart_and_a_whole_quickstart_counts_as_its_runs(tmp_path):
    whole = tmp_path / "quickstart"
    for kind in ("contrastive", "decoder"):
        make_training_run(whole / kind, kind)
    runs = [whole, make_training_run(tmp_path / HOSTILE.replace("/", ""), "decoder")]
    assert list(training_runs({"w": whole, "x": runs[1]})) == ["w/contrastive", "w/decoder", "x"]
    text = page_of(runs, tmp_path / "page")
    assert "contrastive: loss</text>" in text and "decoder: loss</text>" in text
    assert "Teacher: image-text dual encoder</h3>" in text


def test_tokenizers_have_their_evaluations_and_their_curves(tmp_path):
    text = page_of([make_run(tmp_path / "a"), make_run(tmp_path / "b", 1.0)], tmp_path / "page")
    assert "Results</h2>" in text and "Reconstructions</h2>" in text
    assert "tokenizer: loss</text>" in text and "tokenizer: codebook, usage all scales</text>" in text


def test_the_time_of_a_run_is_on_its_page(tmp_path):
    run = make_training_run(tmp_path / "run")
    assert restarts(run) == [10] and goodput({"bare": tmp_path}) == ""
    text = page_of([run], tmp_path / "page")
    # 50 s, of which 30 of steps; 2 of the first attempt's 12 steps were lost.
    row = re.search(r"<tr><td>run</td>(.*?)</tr>", text.partition("Goodput</h2>")[2]).group(1)
    assert re.findall(r">([\d.%]+)<", row)[:3] == ["2", "50.0", "56.7%"]


def test_folders_that_are_no_runs_are_refused(tmp_path):
    run, bare = make_training_run(tmp_path / "a"), tmp_path / "b"
    bare.mkdir()
    with pytest.raises(UserError, match="b: neither a training run .* nor a tokenizer evaluation there"):
        report.main([str(run), str(bare), "--out", str(tmp_path / "page")])

import json
import re

import numpy as np
import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.evals.outcome import Outcome, merge_outcomes, save_outcome, update_metrics
from nextflow_jax.report import __main__ as report
from tests.report.tokenizer_runs import HOSTILE, check_page


def pictures(count, *shape):
    return np.random.default_rng(count).integers(0, 256, (count, *shape, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def run(tmp_path):
    """A finished run of two pictures, one answer right and one wrong, with a name that would break careless HTML."""
    folder = tmp_path / "evaluation"
    folder.mkdir()
    names, right = ["red heart", HOSTILE], [True, False]
    rebuilt = [{"key": n, "caption": n, "split": s, "psnr": 20.0} for n, s in zip(names, ("train", "validation"))]
    drawn = [{"key": n, "prompt": n, "right": r} for n, r in zip(names, right)]
    parts = {
        "reconstruction": Outcome(
            {"psnr_train": 21.5, "psnr_val": 19.0, "codebook_usage": 0.97},
            records=rebuilt,
            arrays={"original": pictures(2), "copy": pictures(2)},
        ),
        "text_to_image": Outcome(
            {"t2i_retrieval_at_1": 0.96},
            {"t2i_retrieval_at_1": 0.002},
            records=[drawn[0] | {"stages": 0}, drawn[1]],
            arrays={"wanted": pictures(2), "answer": pictures(2), "stages": pictures(1, 3)},
        ),
        "captions": Outcome(
            {"caption_exact_match": 0.5},
            records=[{"key": n, "caption": n, "answer": n, "right": r} for n, r in zip(names, right)],
            arrays={"picture": pictures(2)},
        ),
        "edits": Outcome(
            {"edit_retrieval_at_1": 0.5},
            records=[{"key": n, "before": n, "instruction": "make it dark", "right": r} for n, r in zip(names, right)],
            arrays={"before": pictures(2), "answer": pictures(2), "wanted": pictures(2)},
        ),
        "heldout": Outcome(
            {"right_base": 0.75, "right_attribute": 0.25, "chance_base": 0.01, "chance_attribute": 0.2},
            records=[d | {"right_base": True, "right_attribute": d["right"], "answer": "a hand"} for d in drawn],
            arrays={"wanted": pictures(2), "answer": pictures(2)},
        ),
    }
    for name, outcome in parts.items():
        save_outcome(folder, name, outcome, {"bundle": "b"})
    update_metrics(tmp_path, {**merge_outcomes(folder, parts), "targets": {"psnr_train": 21.0}})
    (tmp_path / "seconds").mkdir()
    (tmp_path / "seconds" / "tokenizer").write_text("62\n")
    (tmp_path / "seconds" / "install").write_text("30\n")
    decoder = tmp_path / "decoder"
    decoder.mkdir()
    (decoder / "config.json").write_text(json.dumps({"train": {"steps": 20, "batch_size": 4}, "seed": 0}))
    lines = [{"step": s, "loss": 5 / s, "cross_entropy/text": 0.0, "cross_entropy/vision": 2 / s} for s in (1, 10, 20)]
    lines[1]["cross_entropy/scale_01"] = None
    (decoder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_the_page_is_whole_and_asks_for_nothing_from_outside(run, capsys):
    report.main([str(run)])
    text = (run / "report" / "index.html").read_text(encoding="utf-8")
    found = check_page(text)
    assert sum(tag == "img" for tag, _ in found) > 20
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert "report/index.html" in capsys.readouterr().out


def test_every_section_shows_its_part(run):
    report.main([str(run)])
    text = (run / "report" / "index.html").read_text(encoding="utf-8")
    figures = ("21.50", "21.00", "0.960", "1 min 02 s", "decoder: 20 steps of 4 rows", "cross-entropy")
    answers = ("make it dark", "wanted: &lt;script&gt;", "captioned: a hand", "base and attribute right", "base right")
    for words in (*figures, *answers):
        assert words in text, words
    assert text.count('class="mark right"') == text.count('class="mark wrong"') + 1  # one prompt is shown twice


def test_times_are_added_to_the_metrics_and_a_rerun_changes_nothing_else(run):
    report.main([str(run)])
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["psnr_train"] == 21.5 and metrics["heldout"]["right_base"] == 0.75
    assert list(metrics["seconds"]) == ["install", "tokenizer", "report"]
    assert metrics["total_seconds"] == pytest.approx(sum(metrics["seconds"].values()))
    assert metrics["seconds"]["tokenizer"] == 62
    first = (run / "report" / "index.html").read_bytes()
    report.main([str(run)])
    assert (run / "report" / "index.html").read_bytes() == first


def test_a_run_without_parts_gives_a_page_without_their_sections(tmp_path):
    (tmp_path / "metrics.json").write_text('{"psnr_train": 20.0}')
    report.main([str(tmp_path)])
    text = (tmp_path / "report" / "index.html").read_text()
    assert "20.00" in text and "Captions</h2>" not in text and "Time</h2>" not in text


def test_a_folder_without_metrics_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.json: no such file.*evaluate"):
        report.main([str(tmp_path)])

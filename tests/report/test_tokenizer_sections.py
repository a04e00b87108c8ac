import json
import shutil

from nextflow_jax.report import __main__ as report
from tests.report.tokenizer_runs import check_page, make_run


def page_of(folder):
    report.main([str(folder)])
    return (folder / "report" / "index.html").read_text(encoding="utf-8")


def test_a_tokenizer_run_with_its_evaluation_shows_figures_grid_and_curves(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    before = (run / "metrics.json").read_bytes()
    text = page_of(run)
    found = check_page(text)
    assert sum(tag == "img" for tag, _ in found) == 8 * (3 + 3)  # eight pictures: three ways, and after three scales
    figures = ("20.50", "21.00", "18.25", "19.25", "0.438", "12.50", "rfid left out: no file", "20.0 dB, SSIM 0.500")
    curves = ("codebook usage (tokenizer)", "discriminator&#39;s logits", "logit_fake", "codes revived in a step")
    for words in (*figures, *curves, "20 steps of 4 rows", "&lt;script&gt;", "after scale 3"):
        assert words in text or words.replace("&#39;", "'") in text, words
    assert "Captions</h2>" not in text and "Retrieval@1" not in text and "Time</h2>" not in text
    assert (run / "metrics.json").read_bytes() == before
    assert "20.50" in capsys.readouterr().out


def test_a_run_that_was_not_evaluated_still_shows_its_curves(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "metrics.json").unlink()
    shutil.rmtree(run / "evaluation")
    text = page_of(run)
    assert "PSNR of training batches" in text and "Results</h2>" not in text and not (run / "metrics.json").exists()


def test_an_evaluation_alone_shows_its_figures_and_pictures(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "config.json").unlink()
    (run / "metrics.jsonl").unlink()
    text = page_of(run)
    assert "20.50" in text and "scale by scale</h2>" in text and "Training</h2>" not in text


def test_pages_of_one_size_have_no_table_of_sizes(tmp_path):
    run = make_run(tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["sizes"]["4x8"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert "Each size" not in page_of(run)

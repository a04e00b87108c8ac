import json
import pathlib
import re

import pytest

from nextflow_jax import evaluate, export, extract, train
from nextflow_jax.config import load_experiment, preflight
from nextflow_jax.errors import UserError
from nextflow_jax.report import __main__ as report
from tests.experiments.abstract import GOLDEN, ROOT, SPECS, build, sharding_rows

FILES = sorted({spec.partition(":")[0] for spec in SPECS})
BASE = str(ROOT / "experiments" / "openmoji" / "base.py")


@pytest.mark.parametrize("spec", [*SPECS, *(f"{spec},smoke" for spec in SPECS)])
def test_every_experiment_keeps_all_rules(spec):
    experiment = build(spec)
    preflight(experiment)
    assert experiment.kind in spec and experiment.name


@pytest.mark.parametrize("spec", SPECS)
def test_shardings_are_those_of_the_golden_file(spec):
    """A difference is a change of memory and speed: look at it, then write the file anew (see abstract.py)."""
    golden = json.loads(GOLDEN.read_text())
    assert list(golden) == SPECS
    assert sharding_rows(build(spec)) == golden[spec]


@pytest.mark.parametrize("file", FILES)
def test_the_docstring_says_what_it_reproduces_how_and_with_what_result(file):
    docstring = load_docstring(ROOT / file)
    for word in ("Command", "Cost:", "Result:"):
        assert word in docstring, f"{file}: its docstring lacks {word!r}"
    for name in re.findall(r"nextflow_jax\.(\w+)", docstring):
        module = ROOT / "nextflow_jax" / name
        assert module.with_suffix(".py").exists() or module.is_dir(), f"{file}: there is no command {name}"


@pytest.mark.parametrize("variant", ["tokeniser", "tokenizer,decoder", "decoder,smok"])
def test_unknown_and_contradictory_variants_are_refused(variant):
    with pytest.raises(UserError, match="variant|one of them"):
        load_experiment(f"{BASE}:{variant}")


def test_the_base_experiment_runs_from_pictures_to_report(tmp_path, monkeypatch):
    """Every stage of the smoke variant, two steps each, on eight devices; what comes out has every part."""
    monkeypatch.chdir(ROOT)
    folders = {name: str(tmp_path / name) for name in ("contrastive", "tokenizer", "shards", "decoder", "bundle")}
    steps = "--config.train.steps=2"
    teacher, shards = f"--config.teacher={folders['contrastive']}", f"--config.pipeline.shards={folders['shards']}"
    train.main(["--config", f"{BASE}:contrastive,smoke", "--workdir", folders["contrastive"], steps])
    train.main(["--config", f"{BASE}:tokenizer,smoke", "--workdir", folders["tokenizer"], steps, teacher])
    extract.main(["--config", f"{BASE}:smoke", "--tokenizer", folders["tokenizer"], "--out", folders["shards"]])
    train.main(["--config", f"{BASE}:smoke", "--workdir", folders["decoder"], steps, shards])
    export.main(["--workdir", folders["decoder"], "--out", folders["bundle"]])
    evaluate.main(["--bundle", folders["bundle"], "--config", f"{BASE}:smoke", "--out", str(tmp_path), shards])
    report.main([str(tmp_path)])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {"psnr_train", "t2i_retrieval_at_1", "caption_exact_match", "edit_retrieval_at_1", "heldout"} <= set(metrics)
    page = (tmp_path / "report" / "index.html").read_text()
    for heading in ("Results", "Text to image", "Held-out", "Edits", "Captions", "Reconstructions", "Training"):
        assert f"<h2>{heading}" in page


def load_docstring(path: pathlib.Path) -> str:
    return compile(path.read_text(), str(path), "exec").co_consts[0]

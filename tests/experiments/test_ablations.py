"""The driver of the ablations: commands in order, what is finished is skipped, tables of what there is."""

import dataclasses
import importlib.util
import json
import math

import jax
import numpy as np
import pytest

from nextflow_jax.config import load_experiment
from nextflow_jax.training.tasks import make_task
from tests.experiments.abstract import ROOT
from tests.training import small


def load(name):
    """A program of experiments/ablations."""
    path = ROOT / "experiments" / "ablations" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"ablations_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def driver():
    return load("run")


def planned(driver, capsys, out, *arguments):
    assert driver.main(["--out", str(out), "--dry-run", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_every_command_comes_after_what_it_needs(driver, capsys, tmp_path):
    lines = planned(driver, capsys, tmp_path, "--data", "photographs", "--seeds", "4")
    assert len(lines) == 1 + 5 * 2 + 1 + 2 * 3

    def place(*words):
        (found,) = [n for n, line in enumerate(lines) if all(f"{word} " in f"{line} " for word in words)]
        return found

    run = tmp_path / "photographs" / "seed_4"
    teacher = f"--config.teacher={tmp_path / 'photographs' / 'teacher'}"
    assert place("train", f"--workdir {tmp_path / 'photographs' / 'teacher'}") == 0
    assert all(teacher in line for line in lines if ".train " in line and "/staged " in f"{line} ")
    assert place("train", f"--workdir {run / 'staged_pixel'}") < place(
        f"--config.init_from.workdir={run / 'staged_pixel'}"
    )
    for name in ("dual", "single"):
        order = [
            place("nextflow_jax.train", f"--workdir {run / name}"),
            place("nextflow_jax.extract", f"--tokenizer {run / name}"),
            place("nextflow_jax.train", f"--workdir {run / f'decoder_{name}' / 'decoder'}"),
            place("experiments.ablations.decoder_losses", f"{run / f'decoder_{name}' / 'decoder'}"),
        ]
        assert order == sorted(order)
    assert not any(teacher in line for line in lines if ":single" in line or ":staged_pixel" in line)
    assert sum("--config.seed=4" in line for line in lines) == 6 + 2 * 2


def test_what_is_finished_is_left_out(driver, capsys, tmp_path):
    arguments = ("--data", "openmoji", "--seeds", "0", "--variants", "dual", "--tokenizers-only")
    everything = planned(driver, capsys, tmp_path, *arguments)
    (tmp_path / "openmoji" / "teacher" / "checkpoints" / "300").mkdir(parents=True)
    assert planned(driver, capsys, tmp_path, *arguments) == everything[1:]
    (tmp_path / "openmoji" / "seed_0" / "dual" / "checkpoints" / "500").mkdir(parents=True)
    assert planned(driver, capsys, tmp_path, *arguments) == everything[1:]
    (tmp_path / "openmoji" / "seed_0" / "dual" / "checkpoints" / "1000").mkdir()
    assert planned(driver, capsys, tmp_path, *arguments) == everything[2:]


def test_tables_have_means_and_deviations_over_the_seeds_there_are(driver, capsys, tmp_path):
    for seed, psnr in ((0, 20.0), (1, 22.0)):
        folder = tmp_path / "photographs" / f"seed_{seed}"
        for name in ("staged", "staged_pixel", "decoder_dual"):
            (folder / name).mkdir(parents=True)
        figures = {"psnr_val": psnr, "ssim_val": 0.5, "psnr_train": 25.0, "ssim_train": 0.75, "codebook_usage": 1.0}
        (folder / "staged" / "metrics.json").write_text(json.dumps(figures))
        for name, seconds in (("staged", 50.0), ("staged_pixel", 40.0)):
            (folder / name / "seconds.json").write_text(json.dumps({"nextflow_jax.train": seconds}))
        loss = {"cross_entropy/vision": 5.0 + seed, "accuracy/vision": 0.125, "train": {"cross_entropy/vision": 4.0}}
        (folder / "decoder_dual" / "losses.json").write_text(json.dumps(loss))
    assert driver.main(["--out", str(tmp_path), "--table"]) == 0
    table = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() == table.rstrip("\n") + "\n"
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "photographs" in line
    ]
    assert rows[0][:4] == ["photographs", driver.VARIANTS["staged"], "2", "21.00 ± 1.41"]
    assert rows[0][-1] == "90 ± 0"
    assert rows[1] == ["photographs", driver.VARIANTS["dual"], "2", "5.500 ± 0.707", "0.125 ± 0.000", "4.000 ± 0.000"]
    assert len(rows) == 2


def test_every_row_is_an_experiment(driver, tmp_path):
    for job in driver.jobs(driver._parse(["--out", str(tmp_path), "--smoke", "--seeds", "0"])):
        assert job.command[0] and (job.result.name in ("20", "40") or "checkpoints" not in str(job.result))


def test_a_decoder_that_knows_nothing_has_the_loss_of_a_uniform_guess(tmp_path):
    with pytest.MonkeyPatch.context() as monkeypatch:
        small.register_drawn(monkeypatch)
        small.write_shards(tmp_path / "shards")
        experiment = small.decoder(tmp_path / "shards").with_input_sizes()
        abstract = small.layout_of(make_task(experiment)).abstract
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract.params)
        figures = load("decoder_losses").validation_figures(experiment, params)
    assert figures["cross_entropy/vision"] == pytest.approx(math.log(experiment.model.vocabulary.size), rel=1e-4)
    assert "accuracy/vision" in figures and "cross_entropy/scale_03" in figures


def test_the_validation_split_may_lack_a_task_of_the_mixture(tmp_path):
    with pytest.MonkeyPatch.context() as monkeypatch:
        small.register_drawn(monkeypatch)
        small.write_shards(tmp_path / "shards")
        experiment = small.decoder(tmp_path / "shards").with_input_sizes()
        params = make_task(experiment).init(jax.random.key(0))["params"]
        program = load("decoder_losses")
        expected = program.validation_figures(experiment, params)
        weighted = dataclasses.replace(experiment.pipeline.mixture, weights=(("text_to_image", 0.5), ("frames", 0.5)))
        pipeline = dataclasses.replace(experiment.pipeline, mixture=weighted)
        figures = program.validation_figures(dataclasses.replace(experiment, pipeline=pipeline), params)
    assert figures == expected


def test_training_figures_are_means_of_the_last_lines():
    losses = load("decoder_losses")
    lines = [{"step": n, "loss": 9.0, "cross_entropy/vision": float(n)} for n in range(10)]
    lines[-1]["accuracy/text"] = 0.5
    assert losses.training_figures(lines) == {"cross_entropy/vision": (6 + 7 + 8 + 9) / 4, "accuracy/text": 0.5}


@pytest.fixture(scope="module")
def studies():
    return load("studies")


def test_a_study_trains_every_variant_with_every_seed_on_its_shards(studies, capsys, tmp_path):
    (tmp_path / "quickstart" / "teacher" / "checkpoints" / "400").mkdir(parents=True)
    assert studies.main(["self_correction", "--out", str(tmp_path), "--seeds", "3", "5", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"--config.teacher={tmp_path / 'quickstart' / 'teacher'}" in lines[0]
    for seed in (3, 5):
        for variant, shards in studies.STUDIES["self_correction"].shards.items():
            run = tmp_path / "self_correction" / f"seed_{seed}" / variant
            shards = tmp_path / "self_correction" / f"shards_{shards}"
            train = f"--workdir {run} --config.pipeline.shards={shards} --config.seed={seed}"
            (trained,) = [n for n, line in enumerate(lines) if line.endswith(train)]
            assert any(line.endswith(f"--out {shards}") for line in lines[:trained])
            assert lines[trained + 3].endswith(f"--out {run}")


def test_variants_that_share_shards_have_equal_settings_of_the_extraction(studies):
    for name, study in studies.STUDIES.items():
        extraction = {}
        for variant, shards in study.shards.items():
            config = load_experiment(str(ROOT / studies.FOLDER / f"{name}.py") + f":{variant}")
            made_from = (config.extraction.to_dict(), config.pictures.to_dict(), config.seed)
            assert extraction.setdefault(shards, made_from) == made_from
        assert len(set(map(str, extraction.values()))) == len(extraction)


def test_a_study_s_table_has_training_and_validation_losses_and_the_evaluation(studies, tmp_path):
    study = studies.STUDIES["text_share"]
    for seed, loss in ((0, 2.0), (1, 4.0)):
        run = tmp_path / f"seed_{seed}" / "text_25"
        run.mkdir(parents=True)
        losses = dict.fromkeys(study.losses, loss)
        (run / studies.LOSSES).write_text(json.dumps({**losses, "train": dict.fromkeys(study.losses, loss / 2)}))
        (run / studies.METRICS).write_text(json.dumps(dict.fromkeys(study.metrics, 0.25)))
    heads, _, row = studies.make_table(study, tmp_path).splitlines()
    cells = dict(zip(heads.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    assert cells["seeds"] == "2" and cells["variant"] == "text_25"
    assert cells["vision loss, train"] == "1.500 ± 0.707" and cells["vision loss, validation"] == "3.000 ± 1.414"
    assert cells["among originals"] == "0.250 ± 0.000"

"""The driver of the ablations: commands in order, what is finished is skipped, tables of what there is."""

import importlib.util
import json
import math

import jax
import numpy as np
import pytest

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
            place("experiments.ablations.vision_loss", f"{run / f'decoder_{name}' / 'decoder'}"),
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
        (folder / "decoder_dual" / "vision_loss.json").write_text(json.dumps(loss))
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
        figures = load("vision_loss").validation_figures(experiment, params)
    assert figures["cross_entropy/vision"] == pytest.approx(math.log(experiment.model.vocabulary.size), rel=1e-4)
    assert "accuracy/vision" in figures and "cross_entropy/scale_03" in figures
    assert not any(name.endswith("/text") for name in figures)

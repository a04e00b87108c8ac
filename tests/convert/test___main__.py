"""The convert command: files in, what other commands take out; mistakes end in one line and status 1."""

import dataclasses
import pathlib

import numpy as np
import pytest

from nextflow_jax.bundle import load_bundle
from nextflow_jax.convert import tokenflow
from nextflow_jax.convert.__main__ import main
from nextflow_jax.convert.weight_files import write_arrays
from nextflow_jax.errors import run_entry_point
from nextflow_jax.training.experiment import TokenizerExperiment
from nextflow_jax.training.tasks.tokenizer import load_teacher
from nextflow_jax.vision import presets
from nextflow_jax.vision.transformer import TransformerConfig
from nextflow_jax.vision.vit import ViTConfig
from tests.convert.tiny_tokenflow import tiny_config
from tests.goldens.peer_files import tiny

SIGLIP2 = pathlib.Path(__file__).parents[1] / "goldens" / "siglip2.npz"


def run(model, weights, out, *more):
    main(["--model", model, "--weights", str(weights), "--out", str(out), *more])


def failure(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        run_entry_point(main, [str(argument) for argument in arguments])
    assert end.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


def test_var_becomes_a_bundle(tmp_path, capsys):
    weights, *_ = tiny("var")
    write_arrays(tmp_path / "var.safetensors", weights)
    run("var", tmp_path / "var.safetensors", tmp_path / "bundle")
    codec = load_bundle(tmp_path / "bundle").codec
    np.testing.assert_array_equal(codec.codebook, weights["quantize.embedding.weight"])
    assert codec.family.sizes == ((256, 256),)
    used = sum(array.size for name, array in weights.items() if name != "quantize.ema_vocab_hit_SV")
    assert f"{used:,} parameters" in capsys.readouterr().out


def test_tokenflow_becomes_a_folder(tmp_path, monkeypatch):
    weights, *_ = tiny("siglip")
    monkeypatch.setattr(tokenflow, "tokenflow_config", lambda arrays, source: tiny_config("siglip"))
    write_arrays(tmp_path / "tokenflow.safetensors", weights)
    for _ in range(2):  # a second time replaces the first
        run("tokenflow", tmp_path / "tokenflow.safetensors", tmp_path / "out")
    config, variables = tokenflow.load_folder(tmp_path / "out")
    assert config == tiny_config("siglip")
    np.testing.assert_array_equal(variables["params"]["pixel_decoder"]["out"]["bias"], weights["decoder.conv_out.bias"])


def test_siglip2_becomes_a_teacher(tmp_path, monkeypatch):
    vision, text = TransformerConfig(24, 2, 3, 40), TransformerConfig(16, 2, 4, 20)
    monkeypatch.setitem(presets.SIGLIP2, "tiny", presets.Towers(vision, text))
    goldens = np.load(SIGLIP2)
    start = "a/weights/"
    weights = {name.removeprefix(start): goldens[name] for name in goldens.files if name.startswith(start)}
    text_positions = np.zeros((64, 16), np.float32)
    write_arrays(
        tmp_path / "model.safetensors", {**weights, "text_model.embeddings.position_embedding.weight": text_positions}
    )
    run("siglip2", tmp_path, tmp_path / "teacher")
    experiment = TokenizerExperiment(teacher=str(tmp_path / "teacher"))
    model = dataclasses.replace(
        experiment.model, teacher_width=24, vit=ViTConfig(patch=4, position_grid=(3, 3), transformer=vision)
    )
    teacher = load_teacher(dataclasses.replace(experiment, model=model))
    kernel = teacher.params["vision"]["patch_embedding"]["kernel"]
    np.testing.assert_array_equal(kernel, weights["vision_model.embeddings.patch_embedding.weight"].T)
    assert teacher.config.vit.position_grid == (3, 3)


def test_mistakes_end_in_one_line(tmp_path, capsys):
    write_arrays(tmp_path / "var.safetensors", tiny("var")[0])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    out = ("--out", tmp_path / "out")
    absent = failure(capsys, "--model", "var", "--weights", tmp_path / "no.pth", *out)
    assert "no such weights file" in absent
    other = failure(capsys, "--model", "tokenflow", "--weights", tmp_path / "var.safetensors", *out)
    assert "no TokenFlow checkpoint" in other
    towers = failure(capsys, "--model", "siglip2", "--weights", tmp_path / "var.safetensors", *out)
    assert "no SigLIP 2 dual encoder" in towers
    for model in ("var", "tokenflow", "siglip2"):
        weights = ("--weights", tmp_path / "var.safetensors")
        assert "full" in failure(capsys, "--model", model, *weights, "--out", tmp_path / "full")
    assert not (tmp_path / "out").exists()

import json

import numpy as np
import pytest

from nextflow_jax import evaluate
from nextflow_jax.bundle import save_bundle
from nextflow_jax.data.pictures import PicturesConfig, PictureSet
from nextflow_jax.errors import UserError
from nextflow_jax.evals.config import EvaluationConfig, TokenizerEvaluationConfig
from nextflow_jax.evals.parts import PARTS
from nextflow_jax.training.checkpoint import Restored
from nextflow_jax.training.experiment import TokenizerExperiment
from tests import tiny_models
from tests.evals.tiny import make_pictures

QUICKSTART = "experiments/openmoji/quickstart.py"


@pytest.fixture
def bundle(tmp_path):
    tiny = tiny_models.bundle()
    return save_bundle(
        tmp_path / "bundle",
        vision_tokenizer=tiny.codec,
        text_tokenizer=tiny.text_tokenizer,
        decoder=tiny.decoder,
        origin={},
    )


def resized(size):
    """The hand-made pictures, stretched to another size by repetition and cropping."""
    small = make_pictures()
    images = [np.tile(picture.image, (2, 2, 1))[: size[0], : size[1]] for picture in small]
    return PictureSet(PicturesConfig(size=size), small.infos(), lambda position: images[position], {})


def test_a_real_bundle_is_evaluated_with_every_part(bundle, tmp_path, monkeypatch, capsys):
    """Random weights through the real sampler; the pictures stand in for OpenMoji's."""
    monkeypatch.setattr(evaluate, "open_pictures", lambda config: resized((12, 12)))
    few = [f"--config.evaluation.{name}=2" for name in ("prompts", "edits", "heldout", "max_text_tokens")]
    out = tmp_path / "out"
    command = ["--bundle", str(bundle), "--config", QUICKSTART, "--out", str(out), *few]
    evaluate.main(command)
    metrics = json.loads((out / "metrics.json").read_text())
    names = ("psnr_train", "codebook_usage", "t2i_retrieval_at_1", "caption_exact_match", "edit_retrieval_at_1")
    assert all(np.isfinite(metrics[name]) for name in names)
    assert metrics["heldout"]["count"] == 2
    assert "pictures drawn: 2 of 2" in capsys.readouterr().out
    evaluate.main(command)
    assert capsys.readouterr().out.count(": complete") == len(PARTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "/nowhere", "--config", QUICKSTART], "no bundle.json there"),
        (["--bundle", "/nowhere", "--config", f"{QUICKSTART}:contrastive"], "config.kind is 'contrastive'"),
        (["--workdir", "/nowhere", "--config", QUICKSTART], "a decoder is measured as a bundle"),
        (["--bundle", "/nowhere", "--config", f"{QUICKSTART}:tokenizer"], "no bundle.json there"),
        (["--workdir", "/nowhere", "--config", f"{QUICKSTART}:tokenizer"], "/nowhere has no checkpoints"),
        (
            ["--bundle", "/nowhere", "--config", f"{QUICKSTART}:tokenizer", "--config.evaluation.lpips_vgg=a"],
            "lpips_linear = '': LPIPS needs both files",
        ),
        (["--bundle", "/nowhere", "--config", QUICKSTART, "--config.evaluation.prompts=0"], "prompts = 0: must be pos"),
        (["--bundle", "/nowhere", "--config", QUICKSTART, "--config.evaluation.promts=1"], "did you mean prompts"),
    ],
)
def test_mistakes_are_one_clear_message(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        evaluate.main([*arguments, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_is_measured_from_a_bundle_or_from_its_run(bundle, tmp_path, monkeypatch, capsys):
    """The same weights either way; the second evaluation has other settings and replaces the figures of the first."""
    pictures = resized((12, 12))
    monkeypatch.setattr(evaluate, "open_pictures", lambda config: pictures)
    codec = tiny_models.codec()
    restored = Restored({"name": "tiny"}, {}, {}, {"step": 7})
    monkeypatch.setattr(evaluate, "restore_variables", lambda workdir: restored)
    monkeypatch.setattr(evaluate, "codec_of_run", lambda run: codec)
    out = tmp_path / "out"
    command = ["--config", f"{QUICKSTART}:tokenizer", "--out", str(out), "--config.pictures.size=(12,12)"]
    command += ["--config.evaluation.shown=2", "--config.evaluation.batch_size=4"]
    evaluate.main([*command, "--bundle", str(bundle)])
    first = json.loads((out / "metrics.json").read_text())
    assert {"psnr_train", "psnr_val", "ssim_val", "codebook_usage", "perplexity", "sizes", "scales"} <= first.keys()
    assert not {"lpips_train", "rfid_train"} & first.keys() and first["left_out"].keys() == {"lpips", "rfid"}
    printed = capsys.readouterr().out
    assert printed.count("left out: it needs config.evaluation.") == 2 and "train pictures rebuilt: 11 of 11" in printed
    evaluate.main([*command, "--bundle", str(bundle)])
    assert capsys.readouterr().out.count(": complete") == 2
    evaluate.main([*command, "--workdir", str(tmp_path), "--config.evaluation.splits=('train',)"])
    second = json.loads((out / "metrics.json").read_text())
    assert second["psnr_train"] == first["psnr_train"] and "psnr_val" not in second
    assert second["made_from"]["origin"] == {"name": "tiny", "step": 7}


def test_weights_that_are_named_and_absent_stop_before_any_work(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "open_pictures", lambda config: resized((12, 12)))
    command = ["--config", f"{QUICKSTART}:tokenizer", "--bundle", str(bundle), "--out", str(tmp_path / "out")]
    command += [f"--config.evaluation.{name}=/absent" for name in ("inception", "lpips_vgg", "lpips_linear")]
    with pytest.raises(
        UserError, match=r"lpips_vgg = '/absent'; .*lpips_linear = .*inception = '/absent': no such file"
    ):
        evaluate.main([*command, "--config.pictures.size=(12,12)"])
    assert not (tmp_path / "out").exists()


def test_bundle_and_workdir_exclude_each_other(tmp_path, capsys):
    for given in ([], ["--bundle", "a", "--workdir", "b"]):
        with pytest.raises(SystemExit) as stopped:
            evaluate.main(["--config", QUICKSTART, "--out", str(tmp_path), *given])
        assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("buckets", "asked", "expected"),
    [
        (False, (), ((12, 12),)),
        (True, (), ((12, 12), (8, 16))),
        (True, ((8, 16),), ((8, 16),)),
    ],
)
def test_sizes_are_those_asked_for_or_those_trained_on(buckets, asked, expected):
    experiment = TokenizerExperiment(
        pictures=PicturesConfig(size=(12, 12)),
        model=tiny_models.TOKENIZER_CONFIG,
        buckets=buckets,
        evaluation=TokenizerEvaluationConfig(sizes=asked),
    )
    assert evaluate.evaluation_sizes(experiment) == expected


def test_pictures_of_another_size_are_refused(bundle):
    with pytest.raises(UserError, match="picture size 8x8 is not supported"):
        evaluate.load_subject(bundle, make_pictures(), EvaluationConfig())

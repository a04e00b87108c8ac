import json

import numpy as np
import pytest

from nextflow_jax import evaluate
from nextflow_jax.bundle import save_bundle
from nextflow_jax.data.pictures import PicturesConfig, PictureSet
from nextflow_jax.errors import UserError
from nextflow_jax.evals.config import EvaluationConfig
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
    assert capsys.readouterr().out.count(": complete") == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundle", "/nowhere", "--config", QUICKSTART], "no bundle.json there"),
        (["--bundle", "/nowhere", "--config", f"{QUICKSTART}:tokenizer"], "config.kind is 'tokenizer'"),
        (["--bundle", "/nowhere", "--config", QUICKSTART, "--config.evaluation.prompts=0"], "prompts = 0: must be pos"),
        (["--bundle", "/nowhere", "--config", QUICKSTART, "--config.evaluation.promts=1"], "did you mean prompts"),
    ],
)
def test_mistakes_are_one_clear_message(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        evaluate.main([*arguments, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_pictures_of_another_size_are_refused(bundle):
    with pytest.raises(UserError, match="picture size 8x8 is not supported"):
        evaluate.load_subject(bundle, make_pictures(), EvaluationConfig())

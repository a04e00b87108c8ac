import numpy as np
import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.evals import judges
from nextflow_jax.evals.config import TokenizerEvaluationConfig
from nextflow_jax.evals.inception import InceptionFeatures
from nextflow_jax.evals.judges import load_judges


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Weights files that exist, and loaders that stand in for those of the published weights."""
    for name in ("vgg", "linear", "inception"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(judges, "load_lpips", lambda vgg, linear: {"files": (vgg, linear)})
    monkeypatch.setattr(judges, "load_inception", lambda path, chunk: InceptionFeatures({"file": path}, chunk))
    return tmp_path


def test_metrics_without_weights_are_left_out_with_one_line_each(files):
    loaded = load_judges(TokenizerEvaluationConfig())
    assert loaded.lpips is None and loaded.features is None
    assert loaded.left_out == {
        "lpips": "lpips left out: it needs config.evaluation.lpips_vgg and config.evaluation.lpips_linear",
        "rfid": "rfid left out: it needs config.evaluation.inception",
    }
    some = load_judges(TokenizerEvaluationConfig(inception=str(files / "inception"), batch_size=4))
    assert isinstance(some.features, InceptionFeatures) and some.left_out.keys() == {"lpips"}


def test_lpips_is_measured_in_chunks_of_pictures_in_minus_one_to_one(files, monkeypatch):
    shapes = []

    def distance(params, a, b):
        shapes.append(a.shape)
        return abs(a - b).mean(axis=(1, 2, 3))

    monkeypatch.setattr(judges, "lpips_distance", distance)
    monkeypatch.setattr(judges, "load_lpips", lambda vgg, linear: {})
    config = TokenizerEvaluationConfig(lpips_vgg=str(files / "vgg"), lpips_linear=str(files / "linear"), batch_size=2)
    originals, copies = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 6, 3), dtype=np.uint8)
    found = load_judges(config).lpips(originals, copies)
    expected = np.abs(originals.astype(np.float64) - copies).mean(axis=(1, 2, 3)) / 127.5
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert shapes == [(2, 4, 6, 3)]  # compiled once


def test_absent_files_are_named_together(files):
    config = TokenizerEvaluationConfig(
        lpips_vgg=str(files / "vgg"), lpips_linear=str(files / "no"), inception=str(files / "none")
    )
    with pytest.raises(UserError, match=r"lpips_linear = .*; config\.evaluation\.inception = .*: no such file"):
        load_judges(config)

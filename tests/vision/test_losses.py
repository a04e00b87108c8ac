import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.config import preflight
from nextflow_jax.errors import UserError
from nextflow_jax.vision import losses
from nextflow_jax.vision.losses import TERMS, TokenizerLossConfig, psnr, tokenizer_loss
from nextflow_jax.vision.tokenizer import TokenizerOutput

OFF = TokenizerLossConfig(l1=0.0, l2=0.0, commitment=0.0, distillation_cosine=0.0, distillation_l2=0.0)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def output():
    return TokenizerOutput(
        reconstruction=random(2, 4, 4, 3),
        semantic=random(2, 2, 2, 5, seed=1),
        codes=jnp.zeros((2, 5), jnp.int32),
        commitment=(jnp.asarray(6.0), jnp.asarray(4.0)),
        stats={"codebook/revived": (jnp.asarray(3.0), jnp.asarray(1.0))},
        vq=(jnp.asarray(5.0), jnp.asarray(4.0)),
        entropy_sample=(jnp.asarray(8.0), jnp.asarray(2.0)),
        entropy_batch=(jnp.asarray(0.5), jnp.asarray(1.0)),
    )


IMAGES, FEATURES = random(2, 4, 4, 3, seed=2), random(2, 2, 2, 5, seed=3)


def cosine_distance():
    a, b = (np.asarray(x).reshape(-1, 5) for x in (output().semantic, FEATURES))
    return np.mean([1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(a, b)])


@pytest.fixture(autouse=True)
def simple_lpips(monkeypatch):
    """LPIPS itself, which needs larger pictures, is in test_lpips.py; here, the largest error times a weight."""
    distance = lambda weight, a, b: weight * jnp.max(jnp.abs(a - b), axis=(1, 2, 3))  # noqa: E731
    monkeypatch.setattr(losses, "lpips_distance", distance)


EXPECTED = {
    "l1": lambda: np.abs(output().reconstruction - IMAGES).mean(),
    "l2": lambda: np.square(output().reconstruction - IMAGES).mean(),
    "lpips": lambda: 2.0 * np.abs(output().reconstruction - IMAGES).max(axis=(1, 2, 3)).mean(),
    "commitment": lambda: 1.5,
    "vq": lambda: 1.25,
    "entropy_sample": lambda: 4.0,
    "entropy_batch": lambda: 0.5,
    "distillation_cosine": cosine_distance,
    "distillation_l2": lambda: np.square(output().semantic - FEATURES).mean(),
}


def test_every_weight_has_a_term_and_every_term_a_weight():
    assert set(TERMS) == {field.name for field in dataclasses.fields(TokenizerLossConfig)} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(TERMS))
def test_a_single_term_is_its_definition_times_its_weight(name):
    loss, metrics = tokenizer_loss(output(), IMAGES, FEATURES, dataclasses.replace(OFF, **{name: 3.0}), lpips=2.0)
    np.testing.assert_allclose(loss, 3.0 * EXPECTED[name](), rtol=1e-5)
    total, weight = metrics[f"loss/{name}"]
    np.testing.assert_allclose(total / weight, EXPECTED[name](), rtol=1e-5)


def test_the_loss_is_the_sum_of_its_weighted_terms():
    config = TokenizerLossConfig(l1=0.5, l2=2.0, commitment=0.25, distillation_cosine=0.3, distillation_l2=0.7)
    loss, metrics = tokenizer_loss(output(), IMAGES, FEATURES, config)
    expected = sum(weight * EXPECTED[name]() for name, weight in dataclasses.asdict(config).items())
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert metrics["loss/total"][0] == loss
    assert metrics["codebook/revived"] == output().stats["codebook/revived"]


def test_terms_without_weight_need_no_teacher():
    config = dataclasses.replace(OFF, l2=1.0)
    assert not config.needs_teacher
    _, metrics = tokenizer_loss(output(), IMAGES, None, config)
    assert "loss/distillation_l2" not in metrics


def test_psnr_of_known_errors():
    images = jnp.zeros((3, 4, 4, 3))
    wrong = jnp.stack([jnp.full((4, 4, 3), error) for error in (0.2, 0.02, 5.0)])
    np.testing.assert_allclose(psnr(wrong, images), [20.0, 40.0, 10 * np.log10(4)], rtol=1e-5)  # the last is clamped
    assert np.isfinite(psnr(images, images)).all()


def test_impossible_weights_are_named():
    with pytest.raises(UserError, match=r"config.commitment = -1.0"):
        preflight(dataclasses.replace(TokenizerLossConfig(), commitment=-1.0))
    with pytest.raises(UserError, match=r"config.l2 = 0.0: l1 or l2 must have a weight"):
        preflight(OFF)

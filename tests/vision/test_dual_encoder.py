import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.config import preflight
from nextflow_jax.errors import UserError
from nextflow_jax.vision.dual_encoder import (
    DualEncoder,
    DualEncoderConfig,
    DualEncoderOutput,
    contrastive_loss,
    teacher_features,
    vision_tower,
)
from nextflow_jax.vision.transformer import TransformerConfig
from nextflow_jax.vision.vit import ViT, ViTConfig

STACK = TransformerConfig(width=8, layers=1, heads=2, mlp_width=8)
CONFIG = DualEncoderConfig(
    vit=ViTConfig(patch=4, position_grid=(2, 2), transformer=STACK), text=STACK, max_text_tokens=6, embedding_dim=5
)
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 3)), jnp.float32)
TOKENS = jnp.asarray([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0], [6, 7, 8, 9, 1]], jnp.int32)
LENGTHS = jnp.asarray([3, 2, 5], jnp.int32)


@pytest.fixture(scope="module")
def encoder():
    return DualEncoder(CONFIG, text_vocabulary=10)


@pytest.fixture(scope="module")
def params(encoder, random_variables):
    params = random_variables(encoder, IMAGES, TOKENS, LENGTHS)["params"]
    return {**params, "log_temperature": jnp.log(3.0), "bias": jnp.asarray(-2.0)}


@pytest.fixture(scope="module")
def apply(encoder):
    return jax.jit(lambda params, *batch: encoder.apply({"params": params}, *batch))


def test_embeddings_are_unit_vectors_beside_the_learned_scalars(apply, params):
    out = apply(params, IMAGES, TOKENS, LENGTHS)
    for vectors in (out.images, out.texts):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose([out.temperature, out.bias], [3.0, -2.0], rtol=1e-5)


def test_padding_does_not_matter_and_tokens_do(apply, params):
    texts = apply(params, IMAGES, TOKENS, LENGTHS).texts
    padded = jnp.where(jnp.arange(5) < LENGTHS[:, None], TOKENS, 9)
    np.testing.assert_allclose(apply(params, IMAGES, padded, LENGTHS).texts, texts, atol=1e-6)
    swapped = TOKENS.at[0, :2].set(TOKENS[0, 1::-1])
    assert np.abs(apply(params, IMAGES, swapped, LENGTHS).texts[0] - texts[0]).max() > 1e-5


def test_pooling_the_last_position_sees_padding_as_one_fixed_token(random_variables):
    """Whatever stands in the padding and however long it is: SigLIP 2's texts are padded to full length."""
    config = dataclasses.replace(CONFIG, text_pooling="last", image_projection=False, embedding_dim=8, padding_token=9)
    encoder = DualEncoder(config, text_vocabulary=10)
    params = random_variables(encoder, IMAGES, TOKENS, LENGTHS)
    assert "image_projection" not in params["params"]
    embed = jax.jit(lambda tokens, lengths: encoder.apply(params, tokens, lengths, method="embed_texts"))
    texts = embed(TOKENS, LENGTHS)
    full = jnp.asarray([[1, 2, 3, 9, 9, 9], [4, 5, 9, 9, 9, 9], [6, 7, 8, 9, 1, 9]], jnp.int32)
    same = embed(full, jnp.full((3,), 6, jnp.int32))
    np.testing.assert_allclose(same, texts, atol=1e-6)
    longer = embed(TOKENS, LENGTHS + jnp.asarray([1, 0, 0], jnp.int32))
    assert np.abs(longer - texts)[0].max() > 1e-5


def test_loss_asks_of_every_pair_whether_it_matches():
    generator = np.random.default_rng(1)
    images, texts = generator.normal(size=(2, 4, 5)).astype(np.float32)
    loss, metrics = contrastive_loss(DualEncoderOutput(*map(jnp.asarray, (images, texts, 2.0, -0.5))))
    expected = 0.0
    for i in range(4):
        for j in range(4):
            logit = images[i] @ texts[j] * 2.0 - 0.5
            expected += np.log1p(np.exp(-logit if i == j else logit)) / 4
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert metrics["loss/total"][0] == loss


def test_retrieval_counts_pairs_that_find_each_other():
    images = jnp.eye(3)
    _, metrics = contrastive_loss(
        DualEncoderOutput(images, images[jnp.asarray([0, 2, 1])], jnp.ones(()), jnp.zeros(()))
    )
    assert [float(x) for x in metrics["retrieval/image_to_text"]] == [1.0, 3.0]
    assert [float(x) for x in metrics["retrieval/text_to_image"]] == [1.0, 3.0]


def test_teacher_features_are_those_of_the_vision_tower_without_gradient(params):
    features = jax.jit(lambda params, images: teacher_features(CONFIG, params, images))(params, IMAGES)
    expected = jax.jit(ViT(CONFIG.vit, jnp.float32).apply)({"params": vision_tower(params)}, IMAGES)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    total = jax.jit(jax.grad(lambda images: teacher_features(CONFIG, params, images).sum()))
    assert not total(IMAGES).any()


def test_impossible_settings_are_named():
    with pytest.raises(UserError, match=r"initial_temperature = 0.*max_text_tokens = 0.*dtype = 'float16'"):
        preflight(dataclasses.replace(CONFIG, initial_temperature=0.0, max_text_tokens=0, dtype="float16"))
    with pytest.raises(UserError, match=r"text_pooling = 'first'.*embedding_dim = 5.*use 8"):
        preflight(dataclasses.replace(CONFIG, text_pooling="first", image_projection=False))

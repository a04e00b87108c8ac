"""Published weights give transformers' features, for pictures of mixed shapes and texts, and are written back exactly.

The references are made by tests/goldens/make_siglip2.py.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.convert.siglip2 import load_dual_encoder, load_vision_tower, save_dual_encoder, save_vision_tower
from nextflow_jax.convert.weight_files import read_arrays, write_arrays
from nextflow_jax.errors import UserError
from nextflow_jax.vision.dual_encoder import DualEncoder, DualEncoderConfig, vision_tower
from nextflow_jax.vision.transformer import Transformer, TransformerConfig
from nextflow_jax.vision.vit import AttentionPool, Patches, ViT, ViTConfig, join_patches

GOLDENS = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "siglip2.npz")
TOLERANCE = 1e-4
VOCABULARY = 30


def make_config(vision, text, grid):
    return DualEncoderConfig(
        vit=ViTConfig(patch=4, position_grid=(grid, grid), transformer=TransformerConfig(*vision)),
        text=TransformerConfig(*text),
        max_text_tokens=7,
        text_pooling="last",
        image_projection=False,
        embedding_dim=vision[0],
    )


CONFIGS = {
    "a": make_config((24, 2, 3, 40), (16, 2, 4, 20), 3),
    "b": make_config((16, 1, 2, 24), (24, 1, 2, 16), 7),
}


def golden(name, key):
    return GOLDENS[f"{name}/{key}"]


def weights_of(name):
    start = f"{name}/weights/"
    return {key.removeprefix(start): GOLDENS[key] for key in GOLDENS.files if key.startswith(start)}


def patches_of(name):
    return Patches(jnp.asarray(golden(name, "values")), jnp.asarray(golden(name, "shapes")))


@pytest.fixture(scope="module", params=["a", "b"])
def model(request, tmp_path_factory):
    """(name, configuration, its parameters as loaded from a file)."""
    path = tmp_path_factory.mktemp("siglip2") / "model.safetensors"
    write_arrays(path, weights_of(request.param))
    config = CONFIGS[request.param]
    return request.param, config, load_dual_encoder(path, config, VOCABULARY)


def test_vision_features_and_pooling_are_those_of_transformers(model):
    name, config, params = model
    patches = patches_of(name)
    features = jax.jit(ViT(config.vit, jnp.float32).apply)({"params": params["vision"]}, patches)
    mask = np.asarray(patches.mask)
    assert 0.3 < mask.mean() < 0.9
    error = np.abs(features - golden(name, "vision_features"))[mask].max()
    assert error < TOLERANCE
    pool = AttentionPool(config.vit.transformer, jnp.float32)
    pooled = jax.jit(pool.apply)({"params": params["pool"]}, features, patches.mask)
    np.testing.assert_allclose(pooled, golden(name, "pooled"), atol=TOLERANCE)


def test_text_features_are_those_of_transformers(model):
    name, config, params = model
    tokens, text = golden(name, "tokens"), params["text"]
    x = text["embedding"][tokens] + text["positions"]
    features = jax.jit(Transformer(config.text, jnp.float32).apply)({"params": text["transformer"]}, x)
    np.testing.assert_allclose(features, golden(name, "text_features"), atol=TOLERANCE)


def test_embeddings_and_logits_are_those_of_transformers(model):
    name, config, params = model
    tokens = jnp.asarray(golden(name, "tokens"))
    lengths = jnp.full((len(tokens),), tokens.shape[1], jnp.int32)
    out = jax.jit(DualEncoder(config, VOCABULARY).apply)({"params": params}, patches_of(name), tokens, lengths)
    np.testing.assert_allclose(out.images, golden(name, "images"), atol=TOLERANCE)
    np.testing.assert_allclose(out.texts, golden(name, "texts"), atol=TOLERANCE)
    logits = out.images @ out.texts.T * out.temperature + out.bias
    np.testing.assert_allclose(logits, golden(name, "logits"), atol=TOLERANCE)


def test_a_picture_of_its_own_size_gives_the_same_features(model):
    name, config, params = model
    row = 0
    rows, columns = golden(name, "shapes")[row]
    values = golden(name, "values")[row, : rows * columns].reshape(1, rows, columns, -1)
    picture = join_patches(jnp.asarray(values), config.vit.patch)
    features = jax.jit(ViT(config.vit, jnp.float32).apply)({"params": params["vision"]}, picture)
    expected = golden(name, "vision_features")[row, : rows * columns].reshape(1, rows, columns, -1)
    np.testing.assert_allclose(features, expected, atol=TOLERANCE)


def test_saving_gives_the_file_bit_by_bit(model, tmp_path):
    name, _, params = model
    save_dual_encoder(tmp_path / "out" / "model.safetensors", params)
    written, expected = read_arrays(tmp_path / "out" / "model.safetensors"), weights_of(name)
    assert written.keys() == expected.keys()
    for key, array in expected.items():
        assert written[key].shape == array.shape and written[key].tobytes() == array.tobytes()


@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_the_vision_tower_alone_comes_from_a_whole_model_or_its_own_file(model, tmp_path, prefix):
    name, config, params = model
    save_vision_tower(tmp_path / "tower.safetensors", vision_tower(params))
    tower = read_arrays(tmp_path / "tower.safetensors")
    assert all(np.array_equal(array, weights_of(name)[key]) for key, array in tower.items())
    write_arrays(tmp_path / "own", {prefix + key.removeprefix("vision_model."): array for key, array in tower.items()})
    write_arrays(tmp_path / "whole", weights_of(name))
    for file in ("own", "whole"):
        loaded = load_vision_tower(tmp_path / file, config.vit)
        assert jax.tree.all(jax.tree.map(np.array_equal, loaded, params["vision"]))


def test_fixed_size_models_have_a_convolution_for_the_patches(model, tmp_path):
    name, config, params = model
    arrays = weights_of(name)
    kernel = "vision_model.embeddings.patch_embedding.weight"
    arrays[kernel] = np.ascontiguousarray(arrays[kernel].reshape(-1, 4, 4, 3).transpose(0, 3, 1, 2))
    write_arrays(tmp_path / "fixed", arrays)
    loaded = load_dual_encoder(tmp_path / "fixed", config, VOCABULARY)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, params))


def test_another_size_is_refused_with_all_that_differs(tmp_path):
    write_arrays(tmp_path / "file", weights_of("a"))
    with pytest.raises(UserError) as error:
        load_dual_encoder(tmp_path / "file", CONFIGS["b"], VOCABULARY)
    for part in (
        "mis-shaped (",
        "unmapped (",
        "text_model.encoder.layers.1.",
        "embeddings.position_embedding.weight",
    ):
        assert part in str(error.value)

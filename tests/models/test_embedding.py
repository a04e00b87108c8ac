import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from nextflow_jax.errors import UserError
from nextflow_jax.models.decoder import Decoder, DecoderInputs
from nextflow_jax.models.embedding import Embedding, sinusoidal, with_codebook
from tests.models import numpy_decoder, random_rows

BATCH = random_rows.packed_batch(rows=1)


def embedded(config, variables, batch):
    names = ("tokens", "vision_ids", "vision_weights", "vision_features", "scale_index", "num_scales")
    embedding = {"params": variables["params"]["embedding"]}
    return jax.jit(Embedding(config).apply)(embedding, *(batch.get(name) for name in names))[0]


@pytest.mark.parametrize("connector", ["linear", "mlp"])
@pytest.mark.parametrize("extras", [True, False])
def test_equals_the_numpy_reference(connector, extras):
    config = random_rows.tiny_config(connector=connector, scale_embeddings=extras, scale_count_encoding=extras)
    _, variables = random_rows.make_decoder(config)
    row = {
        name: np.asarray(array[0], np.float64 if array.dtype == jnp.float32 else None) for name, array in BATCH.items()
    }
    expected = numpy_decoder.embed(config, numpy_decoder.to_float64(variables)["params"]["embedding"], row)
    np.testing.assert_allclose(embedded(config, variables, BATCH), expected, atol=1e-5)
    assert ("scales" in variables["params"]["embedding"]) == extras


def test_given_features_take_the_place_of_codes():
    config = random_rows.tiny_config()
    _, variables = random_rows.make_decoder(config)
    codes = variables["params"]["embedding"]["codes"]
    features = jnp.einsum("BSTC,BST->BSC", codes[BATCH["vision_ids"]], BATCH["vision_weights"])
    nonsense = {**BATCH, "vision_ids": jnp.zeros_like(BATCH["vision_ids"]), "vision_features": features}
    expected = embedded(config, variables, BATCH)
    np.testing.assert_allclose(embedded(config, variables, nonsense), expected, atol=1e-5)


def test_the_count_of_scales_is_told_apart():
    encoding = sinusoidal(jnp.arange(19)[None], 32)[0]
    distance = jnp.linalg.norm(encoding[:, None] - encoding[None], axis=-1) + jnp.eye(19)
    assert distance.min() > 0.5
    assert sinusoidal(jnp.ones((1, 1), jnp.int32), 7).shape == (1, 1, 7)


@pytest.mark.parametrize(("halves", "entering"), [("both", range(6)), ("semantic", range(2)), ("pixel", range(2, 6))])
def test_the_chosen_half_of_the_codes_enters_and_no_other(halves, entering):
    config = random_rows.tiny_config(code_halves=halves, semantic_dim=2)
    _, variables = random_rows.make_decoder(config)
    before = embedded(config, variables, BATCH)
    assert variables["params"]["embedding"]["connector"]["out"]["kernel"].shape == (len(entering), 32)
    for dim in range(6):
        codes = variables["params"]["embedding"]["codes"]
        changed = {**variables["params"]["embedding"], "codes": codes.at[:, dim].add(1.0)}
        after = embedded(config, {"params": {"embedding": changed}}, BATCH)
        features = jnp.einsum("BSTC,BST->BSC", changed["codes"][BATCH["vision_ids"]], BATCH["vision_weights"])
        given = embedded(config, variables, {**BATCH, "vision_features": features})
        np.testing.assert_allclose(given, after, atol=1e-5)
        assert np.array_equal(before, after) == (dim not in entering)


@pytest.mark.parametrize("boxed", [True, False])
def test_with_codebook_replaces_the_vision_table_alone(boxed):
    config = random_rows.tiny_config()
    variables = jax.jit(Decoder(config).init)(jax.random.key(0), DecoderInputs.zeros(1, 1))
    variables = variables if boxed else meta.unbox(variables)
    codebook = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)
    changed = with_codebook(variables, codebook)
    assert jax.tree.structure(changed) == jax.tree.structure(variables)
    before, after = meta.unbox(variables)["params"], meta.unbox(changed)["params"]
    np.testing.assert_array_equal(after["embedding"]["codes"], codebook)
    assert not np.array_equal(before["embedding"]["codes"], codebook)
    shared = [x is y for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True)]
    assert shared.count(False) == 1


def test_a_codebook_of_another_shape_is_refused():
    _, variables = random_rows.make_decoder(random_rows.tiny_config())
    with pytest.raises(UserError, match=r"\(13, 6\) does not fit the decoder's vision table \(12, 6\)"):
        with_codebook(variables, np.zeros((13, 6), np.float32))

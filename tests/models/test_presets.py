import math

import jax
import numpy as np
import pytest
from flax.core import meta

from nextflow_jax.errors import UserError
from nextflow_jax.models.decoder import Decoder, DecoderInputs
from nextflow_jax.models.presets import PRESETS, decoder_preset
from nextflow_jax.vocabulary import Vocabulary


def shapes(config):
    variables = jax.eval_shape(lambda: Decoder(config).init(jax.random.key(0), DecoderInputs.zeros(1, 1)))
    return jax.tree.map(lambda x: x.shape, meta.unbox(variables)["params"])


def count(tree):
    return sum(math.prod(shape) for shape in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, tuple)))


def text_tower(name, vocabulary_size):
    """Parameters of a preset's language model: everything but vision codes, connector and scale encodings."""
    vocabulary = Vocabulary(vocabulary_size - 6, 1, pad_multiple=1)
    params = shapes(decoder_preset(name, vocabulary, code_dim=40, max_scales=19))
    assert params["embedding"]["tokens"][0] == vocabulary_size
    return count({**params, "embedding": params["embedding"]["tokens"]})


@pytest.mark.parametrize("name", PRESETS)
def test_presets_keep_the_rules(name):
    assert not list(decoder_preset(name, Vocabulary(100, 50), 16, 5).faults())


def test_the_7b_shape_has_the_parameters_of_qwen2_5_vls_language_model():
    layer = 3584 * 3584 * 2 + 2 * 3584 * 512 + 3 * 3584 * 18944  # query and out, key and value, MLP
    layer += 3584 + 2 * 512 + 2 * 3584  # biases, norms
    assert text_tower("qwen2_5_vl_7b", 152064) == 28 * layer + 2 * 152064 * 3584 + 3584 == 7_615_616_512


def test_the_3b_shape_has_one_table_for_embedding_and_head():
    layer = 2048 * 2048 * 2 + 2 * 2048 * 256 + 3 * 2048 * 11008 + 2048 + 2 * 256 + 2 * 2048
    assert text_tower("qwen2_5_vl_3b", 151936) == 36 * layer + 151936 * 2048 + 2048


@pytest.mark.parametrize(("name", "low", "high"), [("base", 90e6, 120e6), ("large", 0.9e9, 1.1e9)])
def test_named_sizes_are_near_their_names(name, low, high):
    assert low < count(shapes(decoder_preset(name, Vocabulary(100, 50), 40, 19))["layers"]) < high


def test_changes_and_unknown_names():
    config = decoder_preset("tiny", Vocabulary(100, 50), 16, 5, layers=7, qk_norm=False)
    assert (config.layers, config.qk_norm, config.width) == (7, False, PRESETS["tiny"]["width"])
    with pytest.raises(UserError, match="decoder preset 'smal' is not known; did you mean small"):
        decoder_preset("smal", Vocabulary(100, 50), 16, 5)


def test_initial_deviation_is_the_configured_one():
    config = decoder_preset("tiny", Vocabulary(100, 50), 16, 5, initializer_range=0.3)
    params = meta.unbox(jax.jit(Decoder(config).init)(jax.random.key(0), DecoderInputs.zeros(1, 1)))["params"]
    for kernel in (params["layers"]["mlp"]["gate"]["kernel"], params["embedding"]["tokens"], params["head"]["kernel"]):
        np.testing.assert_allclose(np.std(kernel), 0.3, rtol=0.05)
    gate = params["layers"]["mlp"]["gate"]["kernel"]
    assert not np.array_equal(gate[0], gate[1])

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.config import preflight
from nextflow_jax.errors import UserError
from nextflow_jax.vision.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(width=8, layers=2, heads=2, mlp_width=12)
MASK = np.array([[True] * 5, [True, True, True, False, False]])


def inputs():
    return np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def params(random_variables):
    return random_variables(Transformer(CONFIG, jnp.float32), jnp.zeros((1, 5, 8)))


def slow_norm(x, params):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]


def slow_attention(x, params, visible):
    def project(name):
        return np.einsum("ed,dha->eha", x, params[name]["kernel"]) + params[name]["bias"]

    query, key, value = project("query"), project("key"), project("value")
    logits = np.einsum("qha,kha->hqk", query, key) / np.sqrt(query.shape[-1])
    logits = np.where(visible, logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    mixed = np.einsum("hqk,kha->qha", weights / weights.sum(axis=-1, keepdims=True), value)
    return np.einsum("qha,had->qd", mixed, params["out"]["kernel"]) + params["out"]["bias"]


def slow_mlp(x, params):
    hidden = x @ params["up"]["kernel"] + params["up"]["bias"]
    hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    return hidden @ params["down"]["kernel"] + params["down"]["bias"]


def slow_transformer(x, params, visible):
    """One row, in NumPy, block by block."""
    blocks = params["params"]["blocks"]
    for layer in range(CONFIG.layers):
        block = jax.tree.map(lambda leaf, layer=layer: np.asarray(leaf[layer]), blocks)
        x = x + slow_attention(slow_norm(x, block["attention_norm"]), block["attention"], visible)
        x = x + slow_mlp(slow_norm(x, block["mlp_norm"]), block["mlp"])
    return slow_norm(x, jax.tree.map(np.asarray, params["params"]["norm"]))


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_stack_equals_a_plain_one(params, remat):
    config = dataclasses.replace(CONFIG, remat=remat)
    out = jax.jit(Transformer(config, jnp.float32).apply)(params, inputs(), MASK)
    expected = [slow_transformer(row, params, visible) for row, visible in zip(inputs(), MASK)]
    np.testing.assert_allclose(out[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(out[1, :3], expected[1][:3], atol=1e-5)


def test_parameters_stay_float32_when_computing_in_bfloat16():
    transformer = Transformer(CONFIG, jnp.bfloat16)
    x = jnp.zeros((1, 5, 8), jnp.bfloat16)
    variables = jax.eval_shape(lambda: transformer.init(jax.random.key(0), x))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert jax.eval_shape(transformer.apply, variables, x).dtype == jnp.bfloat16


def test_impossible_sizes_are_named():
    with pytest.raises(UserError, match=r"config.width = 10.*config.remat = 'some'"):
        preflight(dataclasses.replace(CONFIG, width=10, heads=4, remat="some"))

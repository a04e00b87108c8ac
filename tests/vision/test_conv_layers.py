import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax.vision.conv_layers import (
    Double,
    GroupNorm,
    NormAct,
    ResidualBlock,
    SelfAttention,
    convolution,
    downsample,
)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def as_float64(tree):
    return jax.tree.map(lambda array: np.asarray(array, np.float64), tree)


def group_norm(params, x, groups):
    """Float64 reference."""
    grouped = np.asarray(x, np.float64).reshape(*x.shape[:3], groups, x.shape[3] // groups)
    mean = grouped.mean(axis=(1, 2, 4), keepdims=True)
    normed = ((grouped - mean) / np.sqrt(grouped.var(axis=(1, 2, 4), keepdims=True) + 1e-6)).reshape(x.shape)
    return normed * params["scale"] + params["bias"]


def convolve(params, x, stride=1, before=1, after=1):
    """Float64 reference: every tap of the kernel by itself, zeros around the picture."""
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (before, after), (before, after), (0, 0)))
    rows = (padded.shape[1] - 3) // stride + 1
    columns = (padded.shape[2] - 3) // stride + 1
    out = np.zeros((x.shape[0], rows, columns, params["kernel"].shape[-1])) + params["bias"]
    for i in range(3):
        for j in range(3):
            taps = padded[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
            out += taps @ params["kernel"][i, j]
    return out


def norm_act(params, x, groups):
    normed = group_norm(params["norm"], x, groups)
    return normed / (1 + np.exp(-normed))


def test_group_norm_is_over_the_grid_and_the_channels_of_a_group(random_variables):
    x = random(2, 3, 5, 4) * 3 + 1
    layer = NormAct(2, jnp.float32)
    variables = random_variables(layer, x)
    expected = norm_act(as_float64(variables["params"]), x, groups=2)
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


def test_group_norm_uses_the_statistics_it_is_given_and_tells_those_it_finds(random_variables):
    x, norm = random(2, 6, 5, 4) * 2 - 1, GroupNorm(2, jnp.float32)
    variables = random_variables(norm, x)
    expected, found = norm.apply(variables, x, mutable=["intermediates"])
    row_means = found["intermediates"]["row_means"][0]
    assert row_means.shape == (2, 2, 6, 2)
    means = jnp.mean(row_means, axis=2)
    part = norm.apply({**variables, "moments": {"means": means}}, x[:, 2:4])
    np.testing.assert_allclose(part, expected[:, 2:4], atol=1e-5)
    assert np.max(np.abs(part - norm.apply(variables, x[:, 2:4]))) > 0.1


def test_residual_block(random_variables):
    x, block = random(2, 5, 4, 4), ResidualBlock(6, 2, jnp.float32)
    variables = random_variables(block, x)
    params = as_float64(variables["params"])
    hidden = convolve(params["conv_1"], norm_act(params["norm_1"], x, 2))
    hidden = convolve(params["conv_2"], norm_act(params["norm_2"], hidden, 2))
    expected = x @ params["skip"]["kernel"][0, 0] + params["skip"]["bias"] + hidden
    np.testing.assert_allclose(jax.jit(block.apply)(variables, x), expected, atol=1e-4)


def test_a_residual_block_that_keeps_its_channels_has_no_skip(random_variables):
    x = random(1, 4, 4, 4)
    block = ResidualBlock(4, 2, jnp.float32)
    params = random_variables(block, x)["params"]
    assert "skip" not in params
    params["conv_2"] = jax.tree.map(jnp.zeros_like, params["conv_2"])
    np.testing.assert_allclose(jax.jit(block.apply)({"params": params}, x), x, atol=1e-6)


def test_attention(random_variables):
    x, layer = random(2, 3, 4, 6), SelfAttention(3, jnp.float32)
    variables = random_variables(layer, x)
    params = as_float64(variables["params"])
    normed = group_norm(params["norm"], x, 3).reshape(2, 12, 6)
    query, key, value = (
        normed @ params[name]["kernel"][0, 0] + params[name]["bias"] for name in ("query", "key", "value")
    )
    scores = np.exp(query @ key.transpose(0, 2, 1) * 6**-0.5)
    mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ value
    expected = x + (mixed @ params["out"]["kernel"][0, 0] + params["out"]["bias"]).reshape(x.shape)
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), expected, atol=1e-4)


def test_downsampling_pads_below_and_to_the_right(random_variables):
    x, layer = random(1, 6, 4, 3), downsample(3, jnp.float32, "down")
    variables = random_variables(layer, x)
    expected = convolve(as_float64(variables["params"]), x, stride=2, before=0, after=1)
    assert expected.shape == (1, 3, 2, 3)
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


def test_upsampling_repeats_then_convolves(random_variables):
    x, layer = random(1, 3, 2, 3), convolution(4, jnp.float32)
    doubled = Double().apply({}, x)
    np.testing.assert_array_equal(doubled, np.repeat(np.repeat(x, 2, axis=1), 2, axis=2))
    variables = random_variables(layer, doubled)
    expected = convolve(as_float64(variables["params"]), doubled)
    np.testing.assert_allclose(layer.apply(variables, doubled), expected, atol=1e-5)

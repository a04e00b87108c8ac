import jax.numpy as jnp
import numpy as np

from nextflow_jax.models.rope import make_rotation, rotate
from tests.models import numpy_decoder

SECTIONS = (4, 6, 6)


def turn(x, positions, base=1e4, sections=SECTIONS):
    rotation = make_rotation(jnp.asarray(positions, jnp.float32)[None], x.shape[-1], base, sections)
    return np.asarray(rotate(jnp.asarray(x, jnp.float32)[None], rotation))[0]


def test_equals_complex_rotation_in_float64():
    rng = np.random.default_rng(0)
    x, positions = rng.normal(size=(20, 3, 32)), rng.uniform(0, 64, (20, 3))
    np.testing.assert_allclose(turn(x, positions), numpy_decoder.rotate(x, positions, 1e4, SECTIONS), atol=2e-5)


def test_text_positions_give_the_ordinary_rotary_embedding():
    """q cos + rotate_half(q) sin, with emb = concat(freqs, freqs), as in the Qwen2 language model."""
    rng = np.random.default_rng(1)
    x, time = rng.normal(size=(20, 3, 32)), np.arange(20.0)
    frequency = 1.0 / 1e6 ** (np.arange(0, 32, 2) / 32)
    angle = np.concatenate([time[:, None] * frequency] * 2, -1)[:, None]
    rotate_half = np.concatenate([-x[..., 16:], x[..., :16]], -1)
    expected = x * np.cos(angle) + rotate_half * np.sin(angle)
    np.testing.assert_allclose(turn(x, np.repeat(time[:, None], 3, 1), base=1e6), expected, atol=2e-5)


def test_scores_depend_on_differences_of_positions_alone():
    rng = np.random.default_rng(2)
    q, k = rng.normal(size=(2, 8, 1, 32))
    positions = rng.uniform(0, 30, (8, 3))

    def scores(shift):
        return np.einsum("sha,tha->st", turn(q, positions + shift), turn(k, positions + shift))

    np.testing.assert_allclose(scores(0), scores(np.asarray([5.0, -3.0, 11.0])), atol=1e-4)
    assert abs(scores(0) - np.einsum("sha,tha->st", turn(q, positions + 7), turn(k, positions))).max() > 0.1


def test_each_axis_turns_its_own_section():
    x = np.ones((1, 1, 32))
    for axis, section in enumerate((range(4), range(4, 10), range(10, 16))):
        positions = np.zeros((1, 3))
        positions[0, axis] = 1.0
        turned = np.flatnonzero(np.abs(turn(x, positions)[0, 0, :16] - 1) > 1e-7)
        assert set(turned) == set(section)

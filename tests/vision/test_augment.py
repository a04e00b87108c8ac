"""Augmentation: the same for reals and fakes, each picture its own, linear in the picture, nothing leaves the frame."""

import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax.vision import augment as module
from nextflow_jax.vision.augment import augment


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


KEY = jax.random.key(3)


def test_same_key_same_transform_and_each_picture_its_own():
    one = images(1, 16, 24, 3)
    out = augment(jnp.concatenate([one] * 5), KEY)
    assert len({np.asarray(picture).tobytes() for picture in out}) == 5
    np.testing.assert_array_equal(out, augment(jnp.concatenate([one] * 5), KEY))


def test_it_is_affine_in_the_picture():
    """So gradients are those of a fixed linear map: what fakes differ in from reals is kept."""
    a, b, zero = images(4, 16, 16, 3), images(4, 16, 16, 3, seed=1), jnp.zeros((4, 16, 16, 3))
    offset = augment(zero, KEY)
    np.testing.assert_allclose(augment(a + b, KEY) + offset, augment(a, KEY) + augment(b, KEY), atol=1e-5)


def test_shifts_bring_zeros_in_and_stay_within_an_eighth(monkeypatch):
    monkeypatch.setattr(module, "BRIGHTNESS", 0.0)
    monkeypatch.setattr(module, "SATURATION", (1.0, 1.0))
    monkeypatch.setattr(module, "CONTRAST", (1.0, 1.0))
    picture = images(1, 16, 8, 3)
    shifts = set()
    for out in augment(jnp.concatenate([picture] * 64), KEY):
        fits = []
        for down in range(-2, 3):
            for right in range(-1, 2):
                frame = np.zeros((16 + 4, 8 + 2, 3), np.float32)
                frame[2 + down : 18 + down, 1 + right : 9 + right] = picture[0]
                if np.allclose(frame[2:18, 1:9], out, atol=1e-5):
                    fits.append((down, right))
        assert len(fits) == 1
        shifts.update(fits)
    assert len(shifts) == 15

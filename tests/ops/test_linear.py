import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.ops.linear import linear, linear_dot


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_both_forms_are_the_same_product(platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 4, 5)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(4, 5, 6, 7)), jnp.float32)
    got = linear_dot(x, kernel, (((2, 3), (0, 1)), ((), ())))
    np.testing.assert_allclose(got, np.einsum("abcd,cdef->abef", x, kernel), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(linear(x, kernel[0, :, :, 0]), np.asarray(x) @ kernel[0, :, :, 0], rtol=1e-5, atol=1e-5)


def test_the_accumulation_dtype_is_kept():
    x, kernel = jnp.ones((2, 3, 4), jnp.bfloat16), jnp.ones((4, 5), jnp.bfloat16)
    assert linear(x, kernel, preferred_element_type=jnp.float32).dtype == jnp.float32
    assert linear(x, kernel).dtype == jnp.bfloat16

"""ViTamin's stem: grid, locality and edges (values: tests/convert/test_tokenflow.py)."""

import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax.vision.peers.vitamin import MbConvStem, MbConvStemConfig


def test_patches_are_a_sixteenth_and_see_their_surroundings_only():
    stem = MbConvStem(MbConvStemConfig((4, 8), (1, 1)), 12, jnp.float32)
    pictures = jax.random.normal(jax.random.key(0), (1, 96, 64, 3))
    params = jax.jit(stem.init)(jax.random.key(1), pictures)
    apply = jax.jit(stem.apply)
    before = apply(params, pictures)
    assert before.shape == (1, 6, 4, 12)
    changed = np.abs(apply(params, pictures.at[:, 88:].add(1.0)) - before).max(axis=(0, 2, 3))
    assert (changed[:3] == 0).all() and changed[-1] > 1e-3


def test_faults():
    assert [fault.field for fault in MbConvStemConfig((4, 8), (1,)).faults()] == ["blocks"]
    assert not list(MbConvStemConfig((), ()).faults())

"""Teachers: what of a picture they see (values: tests/convert/test_tokenflow.py)."""

import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax.vision.peers.teacher import Teacher, TeacherConfig
from nextflow_jax.vision.peers.tower import TowerConfig
from nextflow_jax.vision.peers.vitamin import MbConvStemConfig

TOWER = TowerConfig(width=8, layers=1, heads=2, mlp_width=12)


def test_pixels_that_fill_no_patch_and_values_out_of_range_are_not_seen():
    teacher = Teacher(TeacherConfig(TOWER, patch=4), jnp.float32)
    pictures = jax.random.uniform(jax.random.key(0), (1, 10, 8, 3), minval=-1.0)
    params = jax.jit(teacher.init)(jax.random.key(1), pictures)
    apply = jax.jit(teacher.apply)
    before = apply(params, pictures)
    assert before.shape == (1, 2, 2, 8)
    np.testing.assert_array_equal(apply(params, pictures.at[:, 8:].set(0.5)), before)
    bright, brighter = (apply(params, pictures.at[:, 0].set(value)) for value in (1.0, 7.0))
    np.testing.assert_array_equal(bright, brighter)
    assert np.abs(bright - before).max() > 1e-3


def test_the_patch_of_a_convolutional_stem_follows_from_its_stages():
    faults = list(TeacherConfig(TOWER, patch=14, stem=MbConvStemConfig()).faults())
    assert [fault.field for fault in faults] == ["patch"] and "patches of 16" in str(faults[0])

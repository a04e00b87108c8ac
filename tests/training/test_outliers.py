import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.models.activations import COLLECTION, LARGEST, MEAN_SQUARE
from nextflow_jax.training.outliers import outliers


def test_quarters_are_measured_on_the_counted_positions():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 2, 5, 16)).astype(np.float32)
    x[3, 1, 2, 7] = 50.0
    x[6, 0, 4, 0] = 1000.0
    counted = np.ones((2, 5), bool)
    counted[0, 4] = False
    written = {LARGEST: np.abs(x).max(axis=-1), MEAN_SQUARE: np.square(x).mean(axis=-1)}
    metrics = outliers({COLLECTION: {"layers": written}}, jnp.asarray(counted))
    assert len(metrics) == 8 and all(float(weight) == 1 for _, weight in metrics.values())
    for quarter in range(4):
        seen = x[2 * quarter : 2 * quarter + 2][:, counted]
        rms = np.sqrt(np.square(seen).mean())
        assert float(metrics[f"residual/rms/layers_{quarter + 1}"][0]) == pytest.approx(rms, rel=1e-5)
        outlier = float(metrics[f"residual/outlier/layers_{quarter + 1}"][0])
        assert outlier == pytest.approx(np.abs(seen).max() / rms, rel=1e-5) and (outlier > 15) == (quarter == 1)

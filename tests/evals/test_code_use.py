import numpy as np
import pytest

from nextflow_jax.evals.code_use import CodeUse, perplexity
from nextflow_jax.scales import ScaleSchedule

SMALL = ScaleSchedule(((1, 1), (1, 2)))
LARGE = ScaleSchedule(((1, 1), (1, 2), (2, 2)))


def test_usage_and_perplexity_by_hand():
    use = CodeUse(8)
    use.add(np.array([[0, 1, 1], [0, 1, 2]], np.int32), SMALL)
    assert use.usage == 3 / 8
    assert use.perplexity == pytest.approx(np.exp(-(2 / 6 * np.log(2 / 6) + 3 / 6 * np.log(3 / 6) + np.log(1 / 6) / 6)))
    first, second = use.scales()
    assert first == {"usage": 1 / 2, "perplexity": pytest.approx(1.0)}  # two positions, one code
    assert second["usage"] == 2 / 4


def test_a_code_used_evenly_counts_as_many_as_there_are():
    assert perplexity(np.array([5, 5, 0, 5])) == pytest.approx(3.0)
    assert np.isnan(perplexity(np.zeros(4, np.int64)))


def test_schedules_of_different_depth_share_their_coarse_scales():
    use, other = CodeUse(16), CodeUse(16)
    use.add(np.array([[3, 4, 5]], np.int32), SMALL)
    other.add(np.arange(7, dtype=np.int32)[None], LARGE)
    use.merge(other)
    assert use.usage == 7 / 16
    assert [scale["usage"] for scale in use.scales()] == [1.0, 1.0, 1.0]
    together = CodeUse(16)
    together.add(np.arange(7, dtype=np.int32)[None], LARGE)
    together.add(np.array([[3, 4, 5]], np.int32), SMALL)
    assert together.scales() == use.scales() and together.perplexity == use.perplexity


def test_nothing_counted_is_no_usage():
    assert CodeUse(4).usage == 0 and CodeUse(4).scales() == []

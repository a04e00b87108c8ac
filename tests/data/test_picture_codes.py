"""How fast pictures were encoded; their codes: test_extraction.py."""

import pytest

from nextflow_jax.data.picture_codes import Tally


def test_speed_leaves_out_the_batch_that_compiles():
    tally = Tally()
    tally.add(8, 20.0)
    assert tally.speed is None
    tally.add(8, 1.0)
    tally.add(4, 0.5)
    assert tally.speed == pytest.approx(8.0)
    assert (tally.images, tally.seconds) == (20, 21.5)

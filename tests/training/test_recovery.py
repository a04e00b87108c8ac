"""Bad batches are written down with what they held."""

import json

import pytest

from nextflow_jax.config import preflight
from nextflow_jax.errors import UserError
from nextflow_jax.training.recovery import BAD_BATCHES_FILE, RecoveryConfig, record_bad_batch


def test_a_line_for_each(tmp_path):
    record_bad_batch(tmp_path, 8, 7, "is not finite", ["a", "b"])
    record_bad_batch(tmp_path, 9, 8, "is not finite", [])
    first, second = map(json.loads, (tmp_path / BAD_BATCHES_FILE).read_text().splitlines())
    assert (first["step"], first["batch"], first["documents"]) == (8, 7, ["a", "b"]) and second["batch"] == 8


def test_numbers_below_zero_are_refused():
    with pytest.raises(UserError, match="config.step_seconds = -1.0: must not be negative"):
        preflight(RecoveryConfig(step_seconds=-1.0))

"""Broken records: counted once each over all batches, logged, and too many stop the run."""

import logging

import numpy as np
import pytest

from nextflow_jax.data.broken_records import BrokenRecords
from nextflow_jax.errors import UserError

NUM_RECORDS = 40
ARRAYS = {"tokens": np.arange(6).reshape(2, 3)}


def batch(broken):
    return {"arrays": ARRAYS, "broken": broken}


@pytest.fixture
def index(samples, tmp_path):
    return samples.write(tmp_path, {"train": samples.documents(NUM_RECORDS)}).index("train")


def test_arrays_pass_through_and_each_record_counts_once(index, caplog):
    records = BrokenRecords(index, max_fraction=0.05)
    with caplog.at_level(logging.WARNING):
        for broken in ({}, {7: "crc"}, {7: "crc", 3: "short"}, {3: "short"}):
            assert records.count(batch(broken)) is ARRAYS
    assert len(records) == 2
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "record 7 (d7#0)" in lines[0] and "crc" in lines[0] and "2 so far" in lines[1]


def test_more_than_the_allowed_share_stop_with_the_key(index):
    records = BrokenRecords(index, max_fraction=0.05)
    records.count(batch({1: "crc", 2: "crc"}))
    with pytest.raises(UserError, match=r"3 of 40 records are broken, the last one d9#0 \(short\).*0\.05"):
        records.count(batch({9: "short"}))


def test_none_allowed_stops_at_the_first(index):
    with pytest.raises(UserError, match="1 of 40"):
        BrokenRecords(index, max_fraction=0.0).count(batch({0: "crc"}))

import gzip

import numpy as np
import pytest

from nextflow_jax.data.ingest.config import SourceConfig
from nextflow_jax.data.ingest.lines import line_units, read_lines
from nextflow_jax.errors import UserError


def lines_of(path, unit_bytes, most=10_000):
    config = SourceConfig(paths=(str(path),), unit_bytes=unit_bytes)
    units = line_units(config)
    return units, [line for unit in units for line in read_lines(unit, most)]


@pytest.mark.parametrize("unit_bytes", [1, 2, 3, 7, 16, 50, 1000])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_every_line_is_read_once_however_the_file_is_divided(tmp_path, unit_bytes, end):
    rng = np.random.default_rng(0)
    words = ["x" * int(n) for n in rng.integers(0, 30, 40)]
    path = tmp_path / "file"
    path.write_bytes("\n".join(words).encode() + end.encode())
    units, found = lines_of(path, unit_bytes)
    assert [line.decode() for _, line in found] == [word for word in words if word]
    data = path.read_bytes()
    assert all(data[offset:].startswith(line) for offset, line in found)
    assert unit_bytes >= 1000 or len(units) > 1


def test_units_are_about_as_large_as_asked(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc\n" * 1000)
    units, _ = lines_of(path, 900)
    sizes = [unit.stop - unit.start for unit in units]
    assert sum(sizes) == 4000
    assert all(450 <= size <= 1350 for size in sizes)


def test_a_long_line_is_none_and_those_around_it_stay(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"one\n" + b"y" * 5000 + b"\nthree\n")
    for unit_bytes in (100, 100_000):
        _, found = lines_of(path, unit_bytes, most=1000)
        assert found == [(0, b"one"), (4, None), (5005, b"three")]


def test_a_line_of_exactly_the_most_bytes_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"z" * 10 + b"\n" + b"w" * 11 + b"\n")
    _, found = lines_of(path, 1000, most=10)
    assert found == [(0, b"z" * 10), (11, None)]


def test_compressed_files_are_whole_units(tmp_path):
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(b"a\nbb\n" * 50))
    units, found = lines_of(path, 10)
    assert len(units) == 1
    assert len(found) == 100


def test_a_truncated_compressed_file_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(np.random.default_rng(0).bytes(2000))[:-100])
    with pytest.raises(UserError, match="file.gz cannot be read"):
        lines_of(path, 10)

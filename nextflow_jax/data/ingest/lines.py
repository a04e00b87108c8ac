"""Lines of text files in units of bytes: each line belongs to the unit in which it begins."""

import gzip
import io
import itertools
import zlib
from collections.abc import Iterator
from typing import Any

from nextflow_jax.data.ingest.config import SourceConfig
from nextflow_jax.data.ingest.formats import Unit
from nextflow_jax.data.ingest.remote import UnreadableFile, list_files, open_file

_COMPRESSED = ".gz"


def line_units(config: SourceConfig) -> list[Unit]:
    """The files of a source in units of about `unit_bytes`; compressed ones and those of unknown size are whole."""
    units = []
    for path, size in list_files(config.paths):
        if size <= config.unit_bytes or path.endswith(_COMPRESSED):
            units.append(Unit(path, size))
            continue
        starts = [*range(0, size - config.unit_bytes // 2, config.unit_bytes), size]
        units.extend(Unit(path, size, start, stop) for start, stop in itertools.pairwise(starts))
    return units


def read_lines(unit: Unit, most: int) -> Iterator[tuple[int, bytes | None]]:
    """(offset in the file, line without its end) of the lines that begin in a unit; blank ones are left out.

    Args:
      unit: of `line_units`.
      most: bytes of a line; of a longer one the line is None, and no more than this is ever held.

    Raises:
      UnreadableFile: the file cannot be read.
    """
    try:
        with open_file(unit.path) as file:
            yield from _read(decompressed(file, unit.path), unit, most)
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableFile(f"{unit.path} cannot be read ({error})") from error


def _read(file: Any, unit: Unit, most: int) -> Iterator[tuple[int, bytes | None]]:
    if unit.start:
        # The line that the unit's first byte is in belongs to the unit before, unless it begins there.
        file.seek(unit.start - 1)
        offset = unit.start - 1 + _skip_line(file, most)
    else:
        offset = 0
    while unit.stop < 0 or offset < unit.stop:
        line = file.readline(most + 1)
        if not line:
            return
        length = len(line)
        if length > most and not line.endswith(b"\n"):
            length += _skip_line(file, most)
            yield offset, None
        elif line.strip():
            yield offset, line.rstrip(b"\r\n")
        offset += length


def _skip_line(file: Any, most: int) -> int:
    """Bytes read up to and with the end of the line."""
    read = 0
    while part := file.readline(most + 1):
        read += len(part)
        if part.endswith(b"\n"):
            break
    return read


def decompressed(file: Any, path: str) -> Any:
    """The bytes of a file; of one whose name ends in .gz, those that are compressed in it."""
    return io.BufferedReader(gzip.GzipFile(fileobj=file)) if path.endswith(_COMPRESSED) else file

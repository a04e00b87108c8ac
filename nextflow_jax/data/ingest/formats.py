"""What a format is: it divides a source into units of work and reads the documents of each. One table of all."""

import dataclasses
import importlib
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from nextflow_jax.config import choose
from nextflow_jax.data.corpus.raw import Drop, RawDocument
from nextflow_jax.data.ingest.config import FORMATS, SourceConfig


@dataclasses.dataclass(frozen=True)
class Unit:
    """What one worker reads at a time and writes as one part of the corpus."""

    path: str
    """A file or URL."""
    size: int
    """Of the file in bytes, -1 where that is not known: a file that changed between two runs is noticed."""
    start: int = 0
    """Where the unit begins in the file, in what the format counts: bytes, row groups, records."""
    stop: int = -1
    """Where it ends; -1: with the file."""


@runtime_checkable
class Format(Protocol):
    """A module with these two functions."""

    def units(self, config: SourceConfig) -> list[Unit]:
        """The units of a source, in an order that depends on the names of its files alone; opens few files.

        Raises:
          UserError: no such file, or a package that is not installed.
        """
        ...

    def read(self, unit: Unit, config: SourceConfig) -> Iterator[RawDocument | Drop]:
        """The documents of a unit in the order of the file, streamed: memory does not grow with the unit.

        Keys begin with the source's name and depend on the file's name and the place in it, or on the record's own id.

        Raises:
          UnreadableFile: the file cannot be read at all, or not to its end.
          UserError: it is not what the source's settings say, or a package is not installed.
        """
        ...


def get_format(name: str) -> Format:
    """The module that reads a format; imported when it is asked for, as each needs packages of its own.

    Raises:
      UserError: an unknown format.
    """
    choose("format", name, dict.fromkeys(FORMATS))
    return importlib.import_module(f"nextflow_jax.data.ingest.{name}")

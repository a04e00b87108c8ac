"""Conversation files in LLaVA's form: a JSON array of conversations about pictures, or the same as JSON Lines.

    [{"id": "1", "image": "coco/1.jpg",
      "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]}]

`image` is a path (or a list of them) below `SourceConfig.image_root`, or below the file's folder; it may be left out.
What becomes of a conversation is in ingest/conversations.py; `SourceConfig.task` says nothing here.

Files ending in .jsonl or .jsonl.gz are divided into units by bytes. Of any other file the array is one unit, read
record by record; what follows a record that is no JSON cannot be found again, so such a file is an error. Conversations
are known by their place in the file, as the ids of LLaVA's own files repeat.
"""

import codecs
import functools
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any

from nextflow_jax.data.corpus.raw import Drop, RawDocument, RefusedDocument
from nextflow_jax.data.ingest.builder import build, key_of, read_named
from nextflow_jax.data.ingest.config import SourceConfig
from nextflow_jax.data.ingest.fields import assemble, parse_object
from nextflow_jax.data.ingest.formats import Unit
from nextflow_jax.data.ingest.lines import decompressed, line_units, read_lines
from nextflow_jax.data.ingest.remote import UnreadableFile, list_files, name_below, open_file

_LINES = (".jsonl", ".jsonl.gz")
_CHUNK = 1 << 18
_SPACE = re.compile(r"[ \t\r\n]*")
_AFTER_VALUE = tuple(" \t\r\n,]")
_JSON = json.JSONDecoder()


def units(config: SourceConfig) -> list[Unit]:
    """See formats.Format."""
    found = [Unit(path, size) for path, size in list_files(config.paths) if not path.endswith(_LINES)]
    if any(path.endswith(_LINES) for path, _ in list_files(config.paths)):
        found += [unit for unit in line_units(config) if unit.path.endswith(_LINES)]
    return sorted(found, key=lambda unit: (unit.path, unit.start))


def read(unit: Unit, config: SourceConfig) -> Iterator[RawDocument | Drop]:
    """See formats.Format.

    Raises:
      UnreadableFile: no JSON array, or an array that ends in the middle.
    """
    name = name_below(unit.path, config.paths)
    if unit.path.endswith(_LINES):
        for offset, line in read_lines(unit, config.max_bytes):
            key = key_of(config, name, offset)
            if line is None:
                yield Drop(key, "too many bytes")
            else:
                yield build(key, lambda key=key, line=line: _document(key, parse_object(line), unit, config))
        return
    for number, record in enumerate(_read_array(unit, config.max_bytes)):
        key = key_of(config, name, number)
        yield build(key, functools.partial(_document, key, record, unit, config))


def _document(key: str, fields: Any, unit: Unit, config: SourceConfig) -> RawDocument:
    if not isinstance(fields, dict) or fields.get(config.column("conversations")) is None or "segments" in fields:
        raise RefusedDocument("bad record")
    return assemble(key, fields, config, functools.partial(read_named, unit=unit, config=config))


def _read_array(unit: Unit, most: int) -> Iterator[Any]:
    """The values of a JSON array, one by one."""
    number = 0
    try:
        with open_file(unit.path) as file:
            text = _Text(decompressed(file, unit.path), most)
            text.take("[")
            while text.peek() != "]":
                if number:
                    text.take(",")
                yield text.value()
                number += 1
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableFile(f"{unit.path} cannot be read ({error})") from error
    except _NoJson as error:
        hint = "JSON Lines must be named .jsonl"
        raise UnreadableFile(
            f"{unit.path} is no whole JSON array: {error} after {number:,} conversations; {hint}"
        ) from error


class _NoJson(Exception):
    """What a JSON array should have here."""


class _Text:
    """JSON text of a file, of which no more than a piece is held."""

    def __init__(self, file: Any, most: int) -> None:
        self._file, self._most = file, most
        # Bytes that are no UTF-8 become lone surrogates: only the record that has them is refused, later.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._held, self._at, self._ended = "", 0, False

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            self._at = _SPACE.match(self._held, self._at).end()
            if self._at < len(self._held) or self._ended:
                return self._held[self._at : self._at + 1]
            self._hold_more(_CHUNK)

    def take(self, expected: str) -> None:
        """Goes past the next character.

        Raises:
          _NoJson: it is another one.
        """
        found = self.peek()
        if found != expected:
            raise _NoJson(f"there is {found!r}, not {expected!r}," if found else "it ends")
        self._at += 1

    def value(self) -> Any:
        """The next value.

        Raises:
          _NoJson: there is none, or a larger one than allowed.
        """
        self.peek()
        more = _CHUNK
        while True:
            try:
                value, end = _JSON.raw_decode(self._held, self._at)
            except (ValueError, RecursionError) as error:
                # Whether the value is broken or goes on in the next piece cannot be told.
                if self._ended or isinstance(error, RecursionError):
                    rule = "it ends in" if self._ended else "there is"
                    raise _NoJson(f"{rule} a value that is no JSON") from error
            else:
                # A number may go on in the next piece; "-12." is one so far.
                if self._ended or self._held[end : end + 1] in _AFTER_VALUE:
                    self._at = end
                    return value
            if len(self._held) - self._at > self._most:
                raise _NoJson(f"there is a value that is no JSON, or larger than max_bytes = {self._most:,},")
            self._hold_more(more)
            more *= 2  # so that a large value is not tried again for every piece

    def _hold_more(self, size: int) -> None:
        data = self._file.read(size)
        self._ended = not data
        self._held = self._held[self._at :] + self._decoder.decode(data, final=self._ended)
        self._at = 0

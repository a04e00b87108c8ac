"""corpus.json: what a corpus holds, what was left out and why, and how it was made."""

import dataclasses
import json
import pathlib
from typing import Any

from nextflow_jax.config import to_plain_dict
from nextflow_jax.errors import UserError

FILE_NAME = "corpus.json"
SCHEMA_VERSION = 1
"""Counts changes of the records, the selection and this file."""


@dataclasses.dataclass(frozen=True)
class PartEntry:
    """One ArrayRecord file."""

    file: str
    records: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class CorpusManifest:
    """Written last, so that a directory without it is an unfinished ingest."""

    parts: tuple[PartEntry, ...]
    splits: dict[str, int]
    """Kept documents by split."""
    read: dict[str, int]
    """Documents read, by source: those written and those dropped."""
    dropped: dict[str, dict[str, int]]
    """Source -> reason (of reasons.REASONS) -> documents. What the comparison of all documents drops (duplicates,
    labels) is under "*"."""
    selection_sha256: str
    fingerprint: str
    """Of the parts' and the selection's checksums: of every document in every split, in order."""
    made_from: dict[str, Any]
    """Configuration, units and program version."""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(to_plain_dict(self), indent=1, sort_keys=True) + "\n"


def is_corpus(directory: str | pathlib.Path) -> bool:
    """Whether `directory` is a finished corpus."""
    return (pathlib.Path(directory) / FILE_NAME).is_file()


def read_corpus_manifest(directory: str | pathlib.Path) -> CorpusManifest:
    """Reads `directory`/corpus.json.

    Raises:
      UserError: no such file, not readable, or of another schema version.
    """
    path = pathlib.Path(directory) / FILE_NAME
    if not path.is_file():
        made_by = f"make it with python -m nextflow_jax.data.ingest --out {directory}"
        raise UserError(f"{path} is missing: {directory} holds no finished corpus; {made_by}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["schema_version"]
        if version != SCHEMA_VERSION:
            raise UserError(f"{path} has schema version {version}, not {SCHEMA_VERSION}; ingest the corpus again")
        parts = tuple(PartEntry(**part) for part in values.pop("parts"))
        return CorpusManifest(parts=parts, **values)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not readable ({error}); ingest the corpus again") from error

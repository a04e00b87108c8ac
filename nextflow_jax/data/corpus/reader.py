"""Reading a finished corpus: checked against its manifest, then any kept document of a split by number."""

import pathlib
import zipfile
from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Int

from nextflow_jax.config import choose
from nextflow_jax.data.atomic_files import file_sha256
from nextflow_jax.data.corpus.manifest import CorpusManifest, PartEntry, read_corpus_manifest
from nextflow_jax.data.corpus.raw import RawDocument, unpack
from nextflow_jax.data.corpus.writer import SELECTION_FILE
from nextflow_jax.data.records import BrokenRecord
from nextflow_jax.errors import UserError

_COPY = "copy it from the original or ingest again"


class Corpus:
    """A finished corpus."""

    def __init__(
        self, directory: pathlib.Path, manifest: CorpusManifest, selection: dict[str, Int[np.ndarray, "_"]]
    ) -> None:
        self.directory = directory
        self.manifest = manifest
        self._selection = selection

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have documents."""
        return tuple(self._selection)

    @property
    def fingerprint(self) -> str:
        """Of every document in every split, in order."""
        return self.manifest.fingerprint

    def source(self, split: str) -> "CorpusSource":
        """The kept documents of a split.

        Raises:
          UserError: there is no such split.
        """
        selection = choose(f"split of {self.directory}", split, self._selection)
        parts = [part for part in self.manifest.parts if part.records]
        paths = [f"{self.directory / part.file}[0:{part.records}]" for part in parts]
        return CorpusSource(grain.sources.ArrayRecordDataSource(paths), selection)


class CorpusSource:
    """Random access to the kept documents of a split, safe to share between threads."""

    def __init__(self, source: grain.sources.ArrayRecordDataSource, selection: Int[np.ndarray, "_"]) -> None:
        self._source = source
        self._selection = selection

    def __len__(self) -> int:
        return len(self._selection)

    def __getitem__(self, document: int) -> RawDocument:
        """Document number `document`; BrokenRecord when its bytes are damaged."""
        (found,) = self.read([document])
        if isinstance(found, BrokenRecord):
            raise found
        return found

    def read(self, documents: Sequence[int]) -> list[RawDocument | BrokenRecord]:
        """Several documents at once, which is quicker than one by one; BrokenRecord in the place of a damaged one."""
        if not documents:
            return []
        try:
            return [_unpack(data) for data in self._source.__getitems__(self._selection[documents].tolist())]
        except RuntimeError as error:  # what ArrayRecord raises on a checksum that does not match
            if len(documents) == 1:
                return [BrokenRecord(str(error))]
            return [found for document in documents for found in self.read([document])]


def _unpack(data: bytes) -> RawDocument | BrokenRecord:
    try:
        return unpack(data)
    except BrokenRecord as error:
        return error


def open_corpus(directory: str | pathlib.Path, verify: str = "size") -> Corpus:
    """Opens a corpus after checking that every file is there and whole.

    Args:
      directory: what `nextflow_jax.data.ingest --out` wrote.
      verify: "size" compares file sizes with the manifest; "full" also compares SHA-256 checksums, reading everything.

    Raises:
      UserError: no manifest, another schema version, a missing file, or one that differs from the manifest.
    """
    directory = pathlib.Path(directory)
    manifest = read_corpus_manifest(directory)
    check = choose("verify", verify, {"size": _check_size, "full": _check_full})
    for part in manifest.parts:
        check(directory / part.file, part)
    return Corpus(directory, manifest, _load_selection(directory / SELECTION_FILE, manifest))


def _load_selection(path: pathlib.Path, manifest: CorpusManifest) -> dict[str, Int[np.ndarray, "_"]]:
    if not path.is_file():
        raise UserError(f"{path} is missing; {_COPY}")
    if (digest := file_sha256(path)) != manifest.selection_sha256:
        raise UserError(f"{path} is damaged: its SHA-256 is {digest}, not {manifest.selection_sha256}; {_COPY}")
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files if len(file[name])}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not readable ({error}); {_COPY}") from error


def _check_size(path: pathlib.Path, part: PartEntry) -> None:
    if not path.is_file():
        raise UserError(f"part {path} is missing; the manifest lists it; {_COPY}")
    if (size := path.stat().st_size) != part.bytes:
        raise UserError(f"part {path} has {size} bytes, the manifest says {part.bytes}; {_COPY}")


def _check_full(path: pathlib.Path, part: PartEntry) -> None:
    _check_size(path, part)
    if (digest := file_sha256(path)) != part.sha256:
        raise UserError(f"part {path} is damaged: its SHA-256 is {digest}, the manifest says {part.sha256}; {_COPY}")

"""WebDataset: tar archives (also gzipped) whose members belong together by name; every archive is a unit.

By WebDataset's convention (github.com/webdataset/webdataset) a sample is what follows in the archive with one name up
to the first dot of the file name: `a/7.jpg`, `a/7.txt` and `a/7.json` are the sample `a/7`. Of its members are read

- pictures: every suffix that ends like one of image_files.SUFFIXES, so `7.0.jpg` and `7.1.jpg` are two; in the order of
  their suffixes, numbers by their value;
- `.txt` or `.caption`: the text, without white space around it;
- `.json`: the fields of ingest/fields.py. The sample's pictures are those in its tar, in order, unless `images` or
  `segments` name them by their suffix ("0.jpg") or file name. A text in the JSON goes before the one in `.txt`;
- `.cls`: the label, where the JSON has none.

All other members are passed over. Documents are known by the names of their archive and sample. No member is written
anywhere, and no more than one sample of at most `max_bytes` is held. An archive that ends in the middle gives the
samples that are complete, and one document that counts as "truncated" for all that are lost.
"""

import contextlib
import dataclasses
import functools
import gzip
import itertools
import pathlib
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

from nextflow_jax.data.corpus.raw import Drop, RawDocument, RefusedDocument
from nextflow_jax.data.image_files import SUFFIXES
from nextflow_jax.data.ingest.builder import build, decode_text, key_of
from nextflow_jax.data.ingest.config import SourceConfig
from nextflow_jax.data.ingest.fields import assemble, parse_object
from nextflow_jax.data.ingest.formats import Unit
from nextflow_jax.data.ingest.remote import UnreadableFile, list_files, name_below, open_file

_TEXTS = ("txt", "caption")
_ARCHIVES = frozenset({"tar", "tgz", "gz", "bz2", "tbz2", "xz", "txz", "zst", "zip", "7z", "rar"})
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
"""Headers whose length the archive chooses, and that tarfile reads at once."""
_LONGEST_HEADER = 1 << 20
_GZIP = b"\x1f\x8b"


class _Truncated(Exception):
    """The archive ends, or is damaged, before its end."""


class _Header(tarfile.TarInfo):
    """A member's header; unlike tarfile's own, one that is cut off or damaged is never taken for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        if header.type in (*_EXTENDED, tarfile.SOLARIS_XHDTYPE) and header.size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


@dataclasses.dataclass
class _Sample:
    """The members read so far that belong together."""

    name: str
    members: dict[str, bytes] = dataclasses.field(default_factory=dict)
    """By what follows the first dot."""
    size: int = 0
    refused: str = ""


def units(config: SourceConfig) -> list[Unit]:
    """See formats.Format."""
    return [Unit(path, size) for path, size in list_files(config.paths)]


def read(unit: Unit, config: SourceConfig) -> Iterator[RawDocument | Drop]:
    """See formats.Format."""
    archive_key = key_of(config, name_below(unit.path, config.paths))
    with contextlib.ExitStack() as stack:
        try:
            archive = _open(stack, unit.path)
            yield from _read_samples(archive, archive_key, config)
        except _Truncated:
            yield Drop(archive_key, "truncated")
        except OSError as error:
            raise UnreadableFile(f"{unit.path} cannot be read ({error})") from error


def _open(stack: contextlib.ExitStack, path: str) -> tarfile.TarFile:
    file = stack.enter_context(open_file(path))
    compressed = file.read(len(_GZIP)) == _GZIP
    file.seek(0)
    # tarfile's own stream of gzip reads only the first of several streams, and checks no checksum.
    stream = stack.enter_context(gzip.GzipFile(fileobj=file)) if compressed else file
    try:
        with _damage():
            return stack.enter_context(tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header))
    except _Truncated as error:
        raise UnreadableFile(f"{path} is no .tar, .tar.gz or .tgz, or is damaged at its start ({error})") from error


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """What tarfile and gzip raise on archives that are no longer what was written, as _Truncated."""
    try:
        yield
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, OverflowError) as error:
        raise _Truncated(str(error)) from error


def _read_samples(archive: tarfile.TarFile, archive_key: str, config: SourceConfig) -> Iterator[RawDocument | Drop]:
    sample = None
    for member in _members(archive):
        reason = _refuse(member)
        if reason:
            yield Drop(_printable(f"{archive_key}/{member.name}"), reason)
            continue
        name, suffix = _divide(member.name)
        if not member.isreg() or not _is_read(suffix):
            continue
        if sample is not None and sample.name != name:
            yield _finish(sample, archive_key, config)
            sample = None
        sample = sample or _Sample(name)
        _add(sample, suffix, archive, member, config.max_bytes)
    if sample is not None:
        yield _finish(sample, archive_key, config)


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while True:
        with _damage():
            member = archive.next()
        if member is None:
            return
        archive.members.clear()  # or tarfile remembers every one
        yield member


def _refuse(member: tarfile.TarInfo) -> str:
    """Why a member is refused, whatever it holds; empty: it is not."""
    if member.isdir():
        return ""
    parts = pathlib.PurePosixPath(member.name.replace("\\", "/")).parts
    if not member.isreg() or not parts or parts[0].startswith("/") or ".." in parts or "\0" in member.name:
        return "unsafe path"
    if parts[-1].rpartition(".")[2].lower() in _ARCHIVES:
        return "nested archive"
    return ""


def _divide(name: str) -> tuple[str, str]:
    """Name of the sample, and suffix in lower case; the suffix of hidden files is empty."""
    *folders, file = pathlib.PurePosixPath(name).parts or ("",)
    stem, _, suffix = file.partition(".")
    return "/".join([*folders, stem]), suffix.lower() if stem else ""


def _is_picture(suffix: str) -> bool:
    return f".{suffix.rpartition('.')[2]}" in SUFFIXES


def _is_read(suffix: str) -> bool:
    return suffix in (*_TEXTS, "json", "cls") or _is_picture(suffix)


def _add(sample: _Sample, suffix: str, archive: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int) -> None:
    sample.size += member.size
    if suffix in sample.members:
        sample.refused = sample.refused or "bad record"
    if sample.size > max_bytes:
        sample.refused = sample.refused or "too many bytes"
    if sample.refused:
        sample.members.clear()
        return
    with _damage():
        sample.members[suffix] = archive.extractfile(member).read()


def _finish(sample: _Sample, archive_key: str, config: SourceConfig) -> RawDocument | Drop:
    key = f"{archive_key}/{sample.name}"
    if sample.refused or _printable(key) != key:
        return Drop(_printable(key), sample.refused or "not utf-8")
    return build(key, functools.partial(_assemble, key, sample, config))


def _assemble(key: str, sample: _Sample, config: SourceConfig) -> RawDocument:
    members = sample.members
    fields: dict[str, Any] = parse_object(members["json"]) if "json" in members else {}
    pictures = sorted(filter(_is_picture, members), key=_in_order)
    fields.pop(config.column("image"), None)
    if not isinstance(fields.get(config.column("images")), list):
        fields[config.column("images")] = None
        fields[config.column("image")] = pictures
    text = next((members[suffix] for suffix in _TEXTS if suffix in members), None)
    for field, value in (("text", text), ("label", members.get("cls"))):
        if fields.get(config.column(field)) is None and value is not None:
            fields[config.column(field)] = decode_text(value).strip()
    if not pictures and config.task not in ("text", "interleaved") and _is_pair(fields, config):
        raise RefusedDocument("missing file")

    def read_image(name: Any) -> bytes:
        if not isinstance(name, str):
            raise RefusedDocument("bad record")
        file = name.rpartition("/")[2].removeprefix(f"{sample.name.rpartition('/')[2]}.").lower()
        if file not in members:
            raise RefusedDocument("missing file")
        return members[file]

    return assemble(key, fields, config, read_image)


def _is_pair(fields: dict[str, Any], config: SourceConfig) -> bool:
    """Whether the record is a picture and a text, not a form that says by itself that it has no picture."""
    forms = ("segments", config.column("conversations"), config.column("texts"))
    return all(fields.get(form) is None for form in forms)


def _in_order(suffix: str) -> list[tuple[int, str]]:
    """A key that sorts runs of digits by their value."""
    runs = re.split(r"([0-9]+)", suffix)
    numbers = (run.lstrip("0") for run in runs[1::2])
    pairs = itertools.zip_longest(((0, run) for run in runs[::2]), ((len(run), run) for run in numbers))
    return [part for pair in pairs for part in pair if part is not None]


def _printable(key: str) -> str:
    return key.encode("utf-8", "backslashreplace").decode()

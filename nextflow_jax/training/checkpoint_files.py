"""Checksums of a checkpoint's files: written once it is complete, compared before it is read."""

import json
import os
import pathlib
import re
import zlib
from collections.abc import Iterator

from nextflow_jax.errors import UserError

_NAME = "checksums-{part:05}-of-{parts:05}.json"
_PATTERN = re.compile(r"checksums-\d{5}-of-(\d{5})\.json")
_PIECE = 1 << 24


def write_checksums(folder: pathlib.Path, part: int, parts: int) -> None:
    """Writes size and CRC-32 of every file in part `part` of `parts` of a complete checkpoint, atomically.

    Each process of a job does its part, so that no machine reads all of a large checkpoint back.
    """
    files = _files(folder)[part::parts]
    entries = {str(file.relative_to(folder)): [file.stat().st_size, _crc(file)] for file in files}
    path = folder / _NAME.format(part=part, parts=parts)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(entries, indent=0), encoding="utf-8")
    temporary.replace(path)


def is_checked(folder: pathlib.Path) -> bool:
    """Whether the checksums of all parts are there; a process that died early left none, or some."""
    lists = _lists(folder)
    counts = {int(_PATTERN.fullmatch(path.name)[1]) for path in lists}
    return bool(lists) and counts == {len(lists)}


def damage(folder: pathlib.Path, part: int = 0, parts: int = 1) -> str:
    """What is wrong with the first damaged file among part `part` of `parts` of those with checksums; "" = nothing."""
    entries = {}
    for path in _lists(folder):
        try:
            entries |= json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return f"{path} cannot be read"
    for name in sorted(entries)[part::parts]:
        size, crc = entries[name]
        file = folder / name
        try:
            found = file.stat().st_size
            if found != size:
                return f"{file} has {found} bytes instead of {size}"
            if _crc(file) != crc:
                return f"{file} has changed since it was written (CRC-32)"
        except OSError as error:
            return f"{file}: {error.strerror}"
    return ""


def require_whole(folder: pathlib.Path) -> None:
    """Raises a UserError that names the first damaged file, if there is one."""
    problem = damage(folder)
    if problem:
        raise UserError(f"{folder} is damaged: {problem}; use another step, or a copy of the file")


def tree_bytes(folder: pathlib.Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in _files(folder))


def size_text(count: int) -> str:
    """So many bytes, as people read them."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"


def _lists(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if _PATTERN.fullmatch(path.name)) if folder.is_dir() else []


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(_walk(folder))


def _walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            if not (pathlib.Path(parent) == folder and name.startswith("checksums-")):
                yield pathlib.Path(parent) / name


def _crc(file: pathlib.Path) -> int:
    value = 0
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE):
            value = zlib.crc32(piece, value)
    return value

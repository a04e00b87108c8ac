"""Files that are there whole or not at all, whatever kills the writer, and their checksums."""

import hashlib
import os
import pathlib
import secrets
from collections.abc import Callable

_PARTIAL = ".partial-"
_HASH_CHUNK = 1 << 20


def write_atomically(path: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Calls `write` with a hidden name beside `path` and renames the result: readers see all of a file, or none.

    The hidden name is new each time: processes that write the same file do not meet.
    """
    partial = path.with_name(f"{_PARTIAL}{secrets.token_hex(4)}-{path.name}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(directory: pathlib.Path) -> None:
    """Deletes what killed writers left in a directory that is finished."""
    for path in directory.iterdir():
        if is_partial(path):
            path.unlink(missing_ok=True)


def is_partial(path: pathlib.Path) -> bool:
    """Whether a file is what a killed `write_atomically` left."""
    return path.name.startswith(_PARTIAL)


def file_sha256(path: pathlib.Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()

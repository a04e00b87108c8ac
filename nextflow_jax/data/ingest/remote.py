"""Files of sources: local ones, and any URL that fsspec opens, with bounded retries."""

import glob
import importlib
import io
import os
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from nextflow_jax.data.corpus.raw import RefusedDocument
from nextflow_jax.errors import UserError

ATTEMPTS = 4
"""How often something remote is tried."""
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each further pause is twice the one before."""

T = TypeVar("T")


class UnreadableFile(UserError):
    """A file of a source that is damaged, or cannot be read, as a whole; `max_unreadable_files` may leave it out."""


def is_url(path: str) -> bool:
    """Whether fsspec opens the path: it begins with a scheme."""
    return "://" in path


def list_files(patterns: tuple[str, ...]) -> list[tuple[str, int]]:
    """The files that paths, globs and URLs name, each once, sorted by name, and their sizes in bytes (-1: not known).

    Raises:
      UserError: a pattern that names no file, or fsspec or its driver for a scheme is not installed.
    """
    found: dict[str, int] = {}
    for pattern in patterns:
        files = _list_remote(pattern) if is_url(pattern) else _list_local(pattern)
        if not files:
            raise UserError(f"source path {pattern!r} names no file; give an existing file, a glob or a URL")
        found.update(files)
    return sorted(found.items())


def open_file(path: str) -> Any:
    """Opens a file or URL for reading in binary; a file object and context manager.

    Raises:
      FileNotFoundError: there is no such file.
      UnreadableFile: a URL that could not be opened after all attempts; reading from the file raises it as well.
    """
    if not is_url(path):
        return open(path, "rb")
    return io.BufferedReader(_RemoteFile(path))


def read_picture(path: str, max_bytes: int) -> bytes:
    """The bytes of a file or URL that a record names.

    Raises:
      RefusedDocument: it is missing, larger than `max_bytes`, or cannot be read.
    """
    try:
        with open_file(path) as file:
            data = file.read(max_bytes + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise RefusedDocument("missing file") from error
    except (UserError, OSError) as error:
        raise RefusedDocument("unreadable source") from error
    if len(data) > max_bytes:
        raise RefusedDocument("too many bytes")
    return data


def resolve_below(root: str, name: str, url_schemes: tuple[str, ...]) -> str:
    """The path or URL of a file that a record names.

    Args:
      root: folder or URL that relative names lie below.
      name: relative to `root`, or a URL of its own.
      url_schemes: of URLs that records may give.

    Raises:
      RefusedDocument: an absolute path, one that leaves `root` (also through links), or another scheme.
    """
    if is_url(name):
        if name.partition("://")[0].lower() not in url_schemes:
            raise RefusedDocument("unsafe path")
        return name
    parts = pathlib.PurePosixPath(name.replace("\\", "/")).parts
    if not parts or parts[0].startswith("/") or ".." in parts or "\0" in name or ":" in parts[0]:
        raise RefusedDocument("unsafe path")
    if is_url(root):
        return f"{root.rstrip('/')}/{'/'.join(parts)}"
    path = pathlib.Path(root, *parts)
    try:
        inside = path.resolve().is_relative_to(pathlib.Path(root).resolve())
    except (OSError, RuntimeError, UnicodeError) as error:  # a name that is too long, links in a ring, no UTF-8
        raise RefusedDocument("missing file") from error
    if not inside:
        raise RefusedDocument("unsafe path")
    return str(path)


def parent(path: str) -> str:
    """The folder of a file or URL."""
    return path.rpartition("/")[0] if is_url(path) else os.path.dirname(path) or "."


def name_below(path: str, patterns: tuple[str, ...]) -> str:
    """What a file is called in keys: its path below the folder of the pattern that names it, without wildcards.

    So keys stay the same when a source moves to another folder or bucket.
    """
    for pattern in patterns:
        fixed = pattern if path == pattern else re.split(r"[*?[]", pattern, maxsplit=1)[0]
        root = fixed.rpartition("/")[0]
        if not root or path.startswith(f"{root}/"):
            return path[len(root) :].lstrip("/")
    return path.rpartition("/")[2]


class _RemoteFile(io.RawIOBase):
    """A URL's bytes; where a read fails, the file is opened again and read on from the same place."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._file: Any = None
        self._at = 0
        self._try(lambda file: None)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._try(lambda file: file.read(len(buffer)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset, whence = self._at + offset, io.SEEK_SET
        self._at = self._try(lambda file: file.seek(offset, whence))
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
        super().close()

    def _try(self, use: Callable[[Any], T]) -> T:
        def attempt() -> T:
            if self._file is None:
                self._file = _filesystem(self._path).open(self._path, "rb")
                if self._at:
                    self._file.seek(self._at)
            try:
                return use(self._file)
            except Exception:
                self._file = None
                raise

        return _with_retries(self._path, attempt)


def _list_local(pattern: str) -> dict[str, int]:
    paths = [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)
    return {path: os.path.getsize(path) for path in paths if os.path.isfile(path)}


def _list_remote(pattern: str) -> dict[str, int]:
    filesystem = _filesystem(pattern)
    scheme = pattern.partition("://")[0]

    def find() -> dict[str, int]:
        names = filesystem.glob(pattern) if glob.has_magic(pattern) else [pattern]
        sizes = {name: filesystem.info(name) for name in names}
        files = {name: info for name, info in sizes.items() if info["type"] == "file"}
        return {
            name if is_url(name) else f"{scheme}://{name.lstrip('/') if scheme != 'file' else name}": _size(info)
            for name, info in files.items()
        }

    try:
        return _with_retries(pattern, find)
    except FileNotFoundError:
        return {}


def _size(info: dict) -> int:
    return -1 if info.get("size") is None else int(info["size"])


def _filesystem(path: str):
    try:
        fsspec = importlib.import_module("fsspec")
    except ImportError as error:
        needs = "URLs need fsspec, which is not installed"
        raise UserError(f"{path}: {needs}; pip install 'nextflow_jax[remote]'") from error
    try:
        return fsspec.core.url_to_fs(path)[0]
    except (ImportError, ValueError) as error:
        raise UserError(f"{path}: fsspec cannot open this URL ({error})") from error


def _with_retries(path: str, attempt: Callable[[], T]) -> T:
    """What `attempt` returns, tried again after errors that may pass."""
    pause = FIRST_PAUSE
    for number in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except (FileNotFoundError, IsADirectoryError, UserError):
            raise
        except PermissionError as error:
            raise UnreadableFile(f"{path}: may not be read ({error})") from error
        except Exception as error:
            # Every file system of fsspec raises the errors of its own client library.
            if number == ATTEMPTS:
                raise UnreadableFile(f"{path}: could not be read in {ATTEMPTS} attempts ({error})") from error
        time.sleep(pause)
        pause *= 2
    raise AssertionError("the last attempt returns or raises")

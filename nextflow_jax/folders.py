"""Folders of this machine: what commands write, and what runs continue, lies in one. A URL is none."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator

from nextflow_jax.errors import UserError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""With one slash: so a pathlib.Path has it. (One letter and a colon is no scheme.)"""

_PROBE_BYTES = 4096

URL_FIX = (
    "mount the bucket and give the path where it is mounted (launch/tpu_pod.sh and launch/gke/jobset.sh do so with "
    "--bucket NAME)"
)


def url_rule(folder: str | os.PathLike) -> str:
    """Why this is no folder; "": it may be one."""
    return "is a URL, not a folder" if _URL.match(os.fspath(folder)) else ""


def require_folder(what: str, folder: str | os.PathLike) -> None:
    """Raises a UserError for a URL, of which a folder of that name would be made; `what` names the setting."""
    rule = url_rule(folder)
    if rule:
        raise UserError(f"{what} {folder}: {rule}; {URL_FIX}")


def probe(folder: pathlib.Path) -> None:
    """Creates a folder and writes a file in it, which goes again; raises the OSError that says why it cannot."""
    file_name = folder / f".write_test_{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file_name.open("wb") as file:
            # An empty file can be made on a full disk.
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        with contextlib.suppress(OSError):
            file_name.unlink()


@contextlib.contextmanager
def writing(flag: str, path: pathlib.Path) -> Iterator[None]:
    """Within, what the disk refuses is a UserError that names the flag and the path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{flag}: {path} cannot be written ({error.strerror}); choose another path") from error

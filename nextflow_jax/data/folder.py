"""A folder tree of the user's own image files as pictures: scanned once by their headers, decoded when asked for.

A caption is the text file beside a picture (`cat.txt` of `cat.jpg`), else the file's name in words. No file is dropped
in silence: what is refused is counted by reason, in `PictureSet.metadata["refused"]` and on standard error.
"""

import collections
import hashlib
import os
import pathlib
import sys
import threading

import numpy as np
from jaxtyping import UInt8

from nextflow_jax.data.image_files import SUFFIXES, ImageLimits, RefusedImage, Size, read_image, read_size
from nextflow_jax.data.pictures import BrokenPicture, PictureInfo, PicturesConfig, PictureSet
from nextflow_jax.errors import UserError

MAX_CAPTION = 2000
"""Bytes of a text file that are read."""
_SAMPLE = 4096
"""Bytes at either end of a file that stand for its content."""
_EXAMPLES = 5
"""Refused files that are named when the folder is opened, and singly later."""


def open_folder(config: PicturesConfig) -> PictureSet:
    """Lists the image files under `config.root`, in the order of their names, and reads their headers.

    Links to folders and hidden files are not followed. `subset` has no meaning here. Two pictures count as twins when
    their files have the same length, beginning and end.

    Raises:
      UserError: no such folder, no picture in it, too many files, or a larger share refused than is allowed.
    """
    root = pathlib.Path(config.root)
    if not root.is_dir():
        raise UserError(f"config.pictures.root = {config.root!r}: no such folder; set it to the one with your pictures")
    files, others = _list_files(root, config.folder.max_files)
    refused = _Refused(config, len(files), others)
    infos, sizes, paths = [], [], []
    for path in files:
        try:
            size = read_size(path, config.folder.limits)
            info = _info(config, root, path)
        except RefusedImage as error:
            refused.add(error)
            continue
        infos.append(info)
        sizes.append(size)
        paths.append(path)
    refused.report()
    if not paths:
        raise UserError(
            f"config.pictures.root = {config.root!r}: no picture that can be used ({refused.summary}); "
            f"known endings: {', '.join(sorted(SUFFIXES))}"
        )

    def read_sized(position: int, size: Size) -> UInt8[np.ndarray, "height width 3"]:
        return _read(paths[position], size, config.background, config.folder.limits, refused)

    return PictureSet(
        config, infos, lambda position: read_sized(position, config.size), refused.metadata, sizes, read_sized
    )


class _Refused:
    """Counts the files that are refused, each once, and stops when they are too many."""

    def __init__(self, config: PicturesConfig, files: int, others: int) -> None:
        self._config = config
        self._files = files
        self._counts: collections.Counter[str] = collections.Counter()
        self._messages: dict[str, str] = {}
        self._scanning = True
        self._lock = threading.Lock()
        self.metadata = {"image_files": files, "other_files": others, "refused": {}, "sources": {}, "train_twins": {}}

    def add(self, error: RefusedImage) -> None:
        """Counts a file, names it on standard error once the scan is over, and raises UserError above the share."""
        with self._lock:
            if str(error) in self._messages:
                return
            self._messages[str(error)] = error.reason
            self._counts[error.reason] += 1
            self.metadata["refused"] = dict(sorted(self._counts.items()))
        if not self._scanning:
            if len(self._messages) <= 10 * _EXAMPLES:
                print(f"picture refused: {error}", file=sys.stderr, flush=True)
            self._check()

    def report(self) -> None:
        """Says what the scan found."""
        self._scanning = False
        print(f"pictures in {self._config.root}: {self.summary}", file=sys.stderr, flush=True)
        for message in list(self._messages)[:_EXAMPLES]:
            print(f"picture refused: {message}", file=sys.stderr, flush=True)
        self._check()

    @property
    def summary(self) -> str:
        """Files, refused ones by reason, and files that are no images."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self._counts.items()))
        return (
            f"{self._files} image files, {len(self._messages)} refused"
            + (f" ({reasons})" if reasons else "")
            + f", {self.metadata['other_files']} other files"
        )

    def _check(self) -> None:
        allowed = self._config.folder.max_failed_share
        if len(self._messages) > allowed * self._files:
            raise UserError(
                f"config.pictures.root = {self._config.root!r}: {self.summary}; more than "
                f"config.pictures.folder.max_failed_share = {allowed}; e.g. {next(iter(self._messages))}; remove or "
                "repair these files, or raise the share"
            )


def _read(
    path: pathlib.Path, size: Size, background: str, limits: ImageLimits, refused: _Refused
) -> UInt8[np.ndarray, "height width 3"]:
    try:
        return read_image(path, size, background, limits)
    except RefusedImage as error:
        refused.add(error)
        raise BrokenPicture(f"{error}; remove or repair the file") from error


def _list_files(root: pathlib.Path, most: int) -> tuple[list[pathlib.Path], int]:
    """(image files in the order of their names, number of other files)."""
    files, others = [], 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = pathlib.Path(folder, name)
            if path.suffix.lower() in SUFFIXES:
                files.append(path)
            else:
                others += 1
            if len(files) > most:
                raise UserError(
                    f"config.pictures.root = {str(root)!r}: more than config.pictures.folder.max_files = {most} "
                    "images; raise it, or split the folder"
                )
    return sorted(files, key=lambda path: path.relative_to(root).as_posix()), others


def _info(config: PicturesConfig, root: pathlib.Path, path: pathlib.Path) -> PictureInfo:
    relative = path.relative_to(root)
    # Names that are no UTF-8 stay apart and can be written to JSON.
    key, group = (
        os.fsencode(name.as_posix()).decode("utf-8", "backslashreplace") for name in (relative, relative.parent)
    )
    drawn = int.from_bytes(hashlib.sha256(os.fsencode(path.name)).digest()[:8], "big") / 2**64
    return PictureInfo(
        key=key,
        split="validation" if drawn < config.folder.validation_share else "train",
        captions=dict.fromkeys(config.languages, _caption(path)),
        group=group,
        subgroup=group,
        base=key,
        family=key,
        attributes={},
        pixels=_content(path),
    )


def _caption(path: pathlib.Path) -> str:
    beside = path.with_suffix(".txt")
    try:
        with open(beside, "rb") as file:
            text = file.read(MAX_CAPTION).decode("utf-8", "replace")
    except OSError:
        text = path.stem.encode("utf-8", "replace").decode().replace("_", " ").replace("-", " ")
    return " ".join(text.split()) or "a picture"


def _content(path: pathlib.Path) -> str:
    try:
        with open(path, "rb") as file:
            digest = hashlib.blake2b(file.read(_SAMPLE), digest_size=12)
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - _SAMPLE))
            digest.update(file.read(_SAMPLE) + str(length).encode())
    except OSError as error:
        raise RefusedImage(path, "unreadable") from error
    return digest.hexdigest()

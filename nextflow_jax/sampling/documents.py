"""Requests in JSON files.

    {"segments": [{"text": "make it blue"}, {"image": "sun.png"}, ...],
     "generate": {"max_images": 1, "max_text_tokens": 64, "size": "32x32", "begin_with_image": true,
                  "max_thought_tokens": 0, "keep_thought": true},
     "settings": {"guidance": 3.0, "temperature": [1.0, 0.7], ...}}

Paths of images are relative to the file. "generate", "settings" and each of their keys may be absent; the keys of
"generate" are fields of `Request`, those of "settings" fields of `SamplingSettings`.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from nextflow_jax.config import from_config_dict, nearest, to_plain_dict
from nextflow_jax.errors import UserError
from nextflow_jax.sampling.requests import Picture, Request
from nextflow_jax.sampling.resolutions import parse_resolution
from nextflow_jax.sampling.settings import SamplingSettings

_OPTIONS = {
    "max_images": int,
    "max_text_tokens": int,
    "max_thought_tokens": int,
    "keep_thought": bool,
    "size": str,
    "begin_with_image": bool,
}


def read_document(path: str | pathlib.Path, defaults: SamplingSettings | None = None) -> Request:
    """The request in a JSON file.

    Args:
      path: the file; its form is in the module's docstring.
      defaults: what settings that the file leaves out are; None: SamplingSettings().

    Raises:
      UserError: no such file, no such JSON, an unknown key or a wrong value; the message says where.
    """
    path = pathlib.Path(path)
    content = read_json(path, "--document")
    check_keys(content, ("segments", "generate", "settings"), str(path))
    segments = content.get("segments")
    if not isinstance(segments, list) or not segments:
        raise UserError(f'{path}: "segments" must list at least one {{"text": ...}} or {{"image": path}}')
    document = [_read_segment(item, f"{path}: segments[{i}]", path.parent) for i, item in enumerate(segments)]
    return Request(tuple(document), **read_options(content, str(path), defaults))


def read_options(content: dict[str, Any], where: str, defaults: SamplingSettings | None) -> dict[str, Any]:
    """The fields of Request that "generate" and "settings" of a file give.

    Args:
      content: of the file.
      where: its name, for messages.
      defaults: what settings that are left out are; None: SamplingSettings().

    Raises:
      UserError: an unknown key or a wrong value.
    """
    options = _read_generate(content.get("generate", {}), f"{where}: generate")
    if "settings" in content:
        options["settings"] = _read_settings(content["settings"], f"{where}: settings", defaults or SamplingSettings())
    return options


def read_json(path: pathlib.Path, flag: str) -> Any:
    """What a JSON file holds.

    Args:
      path: the file.
      flag: of the command line, for messages.

    Raises:
      UserError: no such file, or it is not JSON.
    """
    if not path.is_file():
        raise UserError(f"{flag} {path}: no such file; see --help for what to write")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{flag} {path}: not JSON: {error}") from error


def read_picture(path: pathlib.Path) -> Picture:
    """An image file as RGB.

    Raises:
      UserError: no such file, or none that Pillow reads.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"), np.uint8)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such image file") from error
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path}: not a readable image ({error})") from error


def _read_segment(item: Any, where: str, folder: pathlib.Path) -> str | Picture:
    check_keys(item, ("text", "image"), where)
    if len(item) != 1 or not isinstance(next(iter(item.values())), str):
        raise UserError(f'{where} = {item}: write {{"text": "..."}} or {{"image": "path.png"}}')
    return item["text"] if "text" in item else read_picture(folder / item["image"])


def _read_generate(options: Any, where: str) -> dict[str, Any]:
    check_keys(options, tuple(_OPTIONS), where)
    for key, value in options.items():
        if type(value) is not _OPTIONS[key]:
            raise UserError(f"{where}.{key} = {value!r}: expects {_OPTIONS[key].__name__}")
    return {key: parse_resolution(value) if key == "size" else value for key, value in options.items()}


def _read_settings(values: Any, where: str, defaults: SamplingSettings) -> SamplingSettings:
    names = [field.name for field in dataclasses.fields(SamplingSettings)]
    check_keys(values, names, where)
    return from_config_dict(SamplingSettings, {**to_plain_dict(defaults), **values}, where)


def check_keys(item: Any, known: Sequence[str], where: str) -> None:
    """Raises UserError when `item` is no object or has a key that is not known."""
    if not isinstance(item, dict):
        raise UserError(f"{where}: expects an object with {', '.join(known)}")
    for key in item:
        if key not in known:
            raise UserError(f"{where}.{key} is not a key of a document; {nearest(key, known)}")

"""JSON Lines: one document a line, pictures by path or URL. Files ending in .gz are decompressed.

Short form, one picture and a text, of the source's task (`SourceConfig.task`); a line with a text alone is of the task
"text". Field names may be changed with `SourceConfig.columns`:

    {"image": "cats/1.jpg", "text": "a cat", "id": "1", "label": "cat", "licence": "CC BY 4.0"}
    {"text": "words without a picture"}

Full form, any document of data/documents.py; `loss` may be left out:

    {"id": "7", "task": "edit", "licence": "CC0", "label": "", "source": "shop",
     "segments": [{"image": "7/before.png", "role": "prompt"},
                  {"text": "make it red", "role": "prompt"},
                  {"image": "7/after.png", "role": "response", "loss": true}]}

Paths are relative to `SourceConfig.image_root`, or to the file's folder. A line without an id is known by its place in
the file.
"""

import functools
import json
from collections.abc import Iterator
from typing import Any

from nextflow_jax.data.corpus.raw import Drop, RawDocument, RawSegment, RawText, RefusedDocument
from nextflow_jax.data.ingest.builder import build, captioned, decode_text, key_of, picture
from nextflow_jax.data.ingest.config import SourceConfig
from nextflow_jax.data.ingest.formats import Unit
from nextflow_jax.data.ingest.lines import line_units, read_lines
from nextflow_jax.data.ingest.remote import name_below, parent, read_picture, resolve_below


def units(config: SourceConfig) -> list[Unit]:
    """See formats.Format."""
    return line_units(config)


def read(unit: Unit, config: SourceConfig) -> Iterator[RawDocument | Drop]:
    """See formats.Format."""
    for offset, line in read_lines(unit, config.max_bytes):
        by_place = key_of(config, name_below(unit.path, config.paths), offset)
        try:
            fields = _parse(line)
            name = _optional(fields, config, "id")
            key = key_of(config, name) if name else by_place
        except RefusedDocument as refused:
            yield Drop(by_place, refused.reason)
            continue
        yield build(key, functools.partial(_document, key, fields, unit, config))


def _parse(line: bytes | None) -> dict[str, Any]:
    if line is None:
        raise RefusedDocument("too many bytes")
    try:
        fields = json.loads(decode_text(line))
    except (ValueError, RecursionError) as error:
        raise RefusedDocument("bad record") from error
    if not isinstance(fields, dict):
        raise RefusedDocument("bad record")
    return fields


def _document(key: str, fields: dict[str, Any], unit: Unit, config: SourceConfig) -> RawDocument:
    facts = {name: _optional(fields, config, name) for name in ("label", "licence", "source")}
    if "segments" in fields:
        task = _string(fields, "task")
        segments = tuple(_segment(one, unit, config) for one in _list(fields["segments"]))
        source, licence = facts["source"] or config.name, facts["licence"] or config.licence
        return RawDocument(key, task, segments, source, licence, facts["label"])
    text = _string(fields, config.column("text"))
    image = _optional(fields, config, "image")
    if image:
        return captioned(key, [_read_image(image, unit, config)], text, config, **facts)
    source, licence = facts["source"] or config.name, facts["licence"] or config.licence
    return RawDocument(key, "text", (RawText(text, "response"),), source, licence, facts["label"])


def _segment(fields: Any, unit: Unit, config: SourceConfig) -> RawSegment:
    if not isinstance(fields, dict) or ("text" in fields) == ("image" in fields):
        raise RefusedDocument("bad record")
    role, loss = _string(fields, "role"), fields.get("loss", True)
    if role not in ("prompt", "response") or not isinstance(loss, bool):
        raise RefusedDocument("unknown task" if isinstance(loss, bool) else "bad record")
    if "text" in fields:
        return RawText(_string(fields, "text"), role, loss)
    return picture(_read_image(_string(fields, "image"), unit, config), config, role, loss)


def _read_image(name: str, unit: Unit, config: SourceConfig) -> bytes:
    path = resolve_below(config.image_root or parent(unit.path), name, config.url_schemes)
    return read_picture(path, config.max_bytes)


def _string(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise RefusedDocument("bad record")
    return value


def _optional(fields: dict[str, Any], config: SourceConfig, field: str) -> str:
    """The field as a string, empty where it is left out or null; numbers are written out."""
    value = fields.get(config.column(field))
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RefusedDocument("bad record")
    return str(value)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise RefusedDocument("bad record")
    return value

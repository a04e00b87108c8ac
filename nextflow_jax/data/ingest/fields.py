"""A record's fields to a raw document: the forms that records of every format may have.

The first of these that a record has (names may be changed with `SourceConfig.columns`, but for `segments`):

- `segments` and `task`: any document of data/documents.py, as ingest/jsonl.py shows it.
- `conversations`: turns of a conversation in LLaVA's form, see ingest/conversations.py.
- `texts`, a list: an interleaved document as OmniCorpus has it. Of two lists of one length, `texts` and `images`, each
  place holds a text or a picture and the other list has null there. Otherwise the nulls of `texts` are the places of
  the pictures, in order. Without a picture it is of the task "text".
- `text`, with `image` (one or a list) or `images`: a document of the source's task, see builder.captioned; one without
  a picture, or of a source of the task "text", is of the task "text".

`label`, `licence` and `source` may stand beside each of them, as may `id`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nextflow_jax.data.corpus.raw import RawDocument, RawSegment, RawText, RefusedDocument
from nextflow_jax.data.documents import ROLES
from nextflow_jax.data.ingest.builder import captioned, decode_text, picture
from nextflow_jax.data.ingest.config import SourceConfig
from nextflow_jax.data.ingest.conversations import converse

ReadImage = Callable[[Any], bytes]
"""The bytes of the picture that a field names or holds; raises RefusedDocument."""


def parse_object(data: bytes) -> dict[str, Any]:
    """The fields of a JSON object in UTF-8.

    Raises:
      RefusedDocument: it is something else.
    """
    try:
        fields = json.loads(decode_text(data))
    except (ValueError, RecursionError) as error:
        raise RefusedDocument("bad record") from error
    if not isinstance(fields, dict):
        raise RefusedDocument("bad record")
    return fields


def optional(fields: Mapping[str, Any], name: str) -> str:
    """A field as a string, empty where it is left out or null; numbers are written out.

    Raises:
      RefusedDocument: a value of another type, or text that cannot be UTF-8.
    """
    value = fields.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | bytes | int | float):
        raise RefusedDocument("bad record")
    text = decode_text(value) if isinstance(value, str | bytes) else str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RefusedDocument("not utf-8") from error
    return text


def assemble(key: str, fields: Mapping[str, Any], config: SourceConfig, read_image: ReadImage) -> RawDocument:
    """The document that a record's fields say.

    Raises:
      RefusedDocument, RefusedImage: the fields are of no form above, or a picture cannot be used.
    """
    facts = {name: optional(fields, config.column(name)) for name in ("label", "licence", "source")}

    def document(task: str, segments: Sequence[RawSegment]) -> RawDocument:
        source, licence = facts["source"] or config.name, facts["licence"] or config.licence
        return RawDocument(key, task, tuple(segments), source, licence, facts["label"])

    if fields.get("segments") is not None:
        segments = [_segment(one, config, read_image) for one in _list(fields["segments"])]
        return document(_string(fields, "task"), segments)
    pictures = pictures_of(fields, config)
    if (turns := fields.get(config.column("conversations"))) is not None:
        return document(*converse(_list(turns), [read_image(one) for one in pictures], config))
    if (texts := fields.get(config.column("texts"))) is not None:
        images = fields.get(config.column("images"))
        order = _parallel(_list(texts), images) if images is not None else None
        segments = _interleaved(order or _filled(_list(texts), pictures), config, read_image)
        return document("interleaved" if pictures else "text", segments)
    text = _string(fields, config.column("text"))
    if config.task == "text" or not pictures:
        return document("text", [RawText(text, "response")])
    return captioned(key, [read_image(one) for one in pictures], text, config, **facts)


def _segment(fields: Any, config: SourceConfig, read_image: ReadImage) -> RawSegment:
    if not isinstance(fields, dict) or (fields.get("text") is None) == (fields.get("image") is None):
        raise RefusedDocument("bad record")
    role = _string(fields, "role")
    loss = True if fields.get("loss") is None else fields["loss"]
    if not isinstance(loss, bool):
        raise RefusedDocument("bad record")
    if role not in ROLES:
        raise RefusedDocument("unknown task")
    if fields.get("text") is not None:
        return RawText(_string(fields, "text"), role, loss)
    return picture(read_image(fields["image"]), config, role, loss)


def pictures_of(fields: Mapping[str, Any], config: SourceConfig) -> list[Any]:
    """What names or holds the pictures of a record (fields `image` or `images`); nulls and empty names are none."""
    value = fields.get(config.column("image"))
    if value is None:
        value = fields.get(config.column("images"))
    values = value if isinstance(value, list) else [value]
    return [one for one in values if one is not None and one != ""]


def _parallel(texts: list[Any], images: Any) -> list[tuple[Any, Any]] | None:
    """(text, picture) place by place; None where the lists are of different lengths."""
    if len(_list(images)) != len(texts):
        return None
    if any(text is not None and image is not None for text, image in zip(texts, images)):
        raise RefusedDocument("bad record")
    return list(zip(texts, images))


def _filled(texts: list[Any], pictures: list[Any]) -> list[tuple[Any, Any]]:
    """(text, picture) with the pictures in the places of the texts that are null."""
    if texts.count(None) != len(pictures):
        raise RefusedDocument("bad record")
    rest = iter(pictures)
    return [(text, next(rest) if text is None else None) for text in texts]


def _interleaved(order: list[tuple[Any, Any]], config: SourceConfig, read_image: ReadImage) -> list[RawSegment]:
    segments: list[RawSegment] = []
    for text, image in order:
        if image is not None:
            segments.append(picture(read_image(image), config, "response"))
        elif text is not None:
            segments.append(RawText(_string({"text": text}, "text"), "response"))
    return segments


def _string(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str | bytes):
        raise RefusedDocument("bad record")
    return decode_text(value)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise RefusedDocument("bad record")
    return value

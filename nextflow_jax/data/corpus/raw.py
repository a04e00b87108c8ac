"""Raw documents: texts and encoded pictures as they came, and their form as bytes in a corpus."""

import dataclasses
from typing import Any

import msgpack

from nextflow_jax.data.corpus.reasons import REASONS
from nextflow_jax.data.documents import ROLES, TASKS, Role
from nextflow_jax.data.image_files import Size
from nextflow_jax.data.records import BrokenRecord

_TEXT, _IMAGE = 0, 1


@dataclasses.dataclass(frozen=True)
class RawText:
    """A run of text."""

    text: str
    role: Role
    loss: bool = True
    """False: never a loss on it; True: what the pipeline's rule says of its role."""


@dataclasses.dataclass(frozen=True)
class RawImage:
    """A picture as the bytes of a file in one of `image_files.FORMATS`."""

    data: bytes
    size: Size
    """Of the upright picture, from its header."""
    role: Role
    loss: bool = True
    """As of `RawText`."""


RawSegment = RawText | RawImage


@dataclasses.dataclass(frozen=True)
class RawDocument:
    """One example before any tokenizer has seen it."""

    key: str
    """Unique in its corpus, the same in every ingest of the same files."""
    task: str
    segments: tuple[RawSegment, ...]
    source: str = ""
    licence: str = ""
    label: str = ""
    """What class rebalancing counts; empty: the document is of no class and always stays."""


@dataclasses.dataclass(frozen=True)
class Drop:
    """A document that is left out.

    Raises:
      KeyError: a reason that is not in `reasons.REASONS`.
    """

    key: str
    reason: str

    def __post_init__(self):
        REASONS[self.reason]


class RefusedDocument(Exception):
    """Raised while a document is put together; `reason` is a key of `reasons.REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}: {REASONS[reason]}")
        self.reason = reason


def checked(document: RawDocument) -> RawDocument:
    """The document itself.

    Raises:
      RefusedDocument: an unknown task or role, no response, or text that cannot be UTF-8 or has NUL characters.
    """
    if document.task not in TASKS or any(segment.role not in ROLES for segment in document.segments):
        raise RefusedDocument("unknown task")
    texts = [segment.text for segment in document.segments if isinstance(segment, RawText)]
    if not all(text.isascii() or _encodes(text) for text in texts):
        raise RefusedDocument("not utf-8")
    if any("\0" in text for text in texts):
        raise RefusedDocument("control characters")
    produced = [segment for segment in document.segments if segment.role == "response" and segment.loss]
    if not any(isinstance(segment, RawImage) or segment.text.strip() for segment in produced):
        raise RefusedDocument("nothing to learn")
    return document


def pack(document: RawDocument) -> bytes:
    """The document as msgpack bytes: `[key, task, source, licence, label, [segment, ...]]`.

    A text is `[0, role, loss, text]`, a picture `[1, role, loss, height, width, bytes]`.
    """
    segments = [_pack_segment(segment) for segment in document.segments]
    return msgpack.packb(
        [document.key, document.task, document.source, document.licence, document.label, segments], use_bin_type=True
    )


def unpack(data: bytes) -> RawDocument:
    """The document that `pack` made `data` from.

    Raises:
      BrokenRecord: `data` is anything else.
    """
    try:
        *names, segments = msgpack.unpackb(data)
        key, task, source, licence, label = map(str, names)
        return RawDocument(key, task, tuple(map(_unpack_segment, segments)), source, licence, label)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise BrokenRecord(f"not a raw document: {error}") from error


def _pack_segment(segment: RawSegment) -> list[Any]:
    if isinstance(segment, RawText):
        return [_TEXT, segment.role, segment.loss, segment.text]
    return [_IMAGE, segment.role, segment.loss, *segment.size, segment.data]


def _unpack_segment(fields: list[Any]) -> RawSegment:
    kind, role, loss, *rest = fields
    if role not in ROLES:
        raise ValueError(f"role {role!r} is none of {ROLES}")
    if kind == _TEXT:
        (text,) = rest
        return RawText(str(text), role, bool(loss))
    if kind != _IMAGE:
        raise ValueError(f"segment kind {kind!r}")
    height, width, data = rest
    return RawImage(bytes(data), (int(height), int(width)), role, bool(loss))


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

"""The record of a shard: one document with its text and picture indices, as bytes."""

import dataclasses
from typing import Any

import msgpack
import numpy as np
from jaxtyping import Int

from nextflow_jax.data.documents import ROLES, Role

SCHEMA_VERSION = 2
"""Counts changes of the format below; shards carry it in their manifest.

1: as 2, without `loss` of segments and without `source` and `licence`.
"""

READABLE_VERSIONS = (1, 2)
"""Versions that `decode` understands; it tells them apart by themselves."""

_TEXT, _IMAGE = 0, 1


class BrokenRecord(Exception):
    """Bytes that are no document: the loader counts and skips them."""


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedText:
    """Text ids without specials."""

    ids: Int[np.ndarray, "tokens"]
    role: Role
    loss: bool = True
    """False: never a loss on it; True: what the pipeline's rule says of its role."""


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedImage:
    """A picture's code indices, scale after scale.

    `inputs` are what the decoder sees, with self-correction applied; `targets` what it is to predict
    (recipe section 5).
    """

    size: tuple[int, int]
    """Height and width in pixels."""
    inputs: Int[np.ndarray, "N"]
    targets: Int[np.ndarray, "N"]
    role: Role
    loss: bool = True
    """As of `EncodedText`."""


EncodedSegment = EncodedText | EncodedImage


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedDocument:
    """A document ready for the decoder. `key` names it and, after `#`, the self-correction draw."""

    key: str
    task: str
    segments: tuple[EncodedSegment, ...]
    source: str = ""
    """Where it comes from, a name that mixtures can weigh."""
    licence: str = ""


def encode(document: EncodedDocument) -> bytes:
    """The document as msgpack bytes.

    The layout is `[key, task, source, licence, [segment, ...]]`, a text being `[0, role, loss, item size, ids]` and a
    picture `[1, role, loss, height, width, item size, targets, inputs]` with little-endian unsigned indices of 2 or 4
    bytes. Inputs equal to the targets are stored as nil.

    Raises:
      ValueError: an unknown role, or negative indices.
    """
    segments = [_encode_segment(segment) for segment in document.segments]
    return msgpack.packb([document.key, document.task, document.source, document.licence, segments])


def decode(data: bytes) -> EncodedDocument:
    """The document that `encode` made `data` from, in this version or an earlier one, its indices int32.

    Raises:
      BrokenRecord: `data` is anything else.
    """
    try:
        key, task, *names, segments = msgpack.unpackb(data)
        if len(names) not in (0, 2):
            raise ValueError(f"{len(names) + 3} fields")
        source, licence = map(str, names or ("", ""))
        flags = bool(names)
        decoded = tuple(_decode_segment(segment if flags else _with_loss(segment)) for segment in segments)
        return EncodedDocument(str(key), str(task), decoded, source, licence)
    except (ValueError, TypeError, KeyError, IndexError, msgpack.UnpackException) as error:
        raise BrokenRecord(f"not a document record: {error}") from error


def _encode_segment(segment: EncodedSegment) -> list[Any]:
    if segment.role not in ROLES:
        raise ValueError(f"role {segment.role!r} is none of {ROLES}")
    if isinstance(segment, EncodedText):
        size = _item_size(segment.ids)
        return [_TEXT, segment.role, segment.loss, size, _pack(segment.ids, size)]
    size = max(_item_size(segment.inputs), _item_size(segment.targets))
    corrected = not np.array_equal(segment.inputs, segment.targets)
    inputs = _pack(segment.inputs, size) if corrected else None
    return [_IMAGE, segment.role, segment.loss, *map(int, segment.size), size, _pack(segment.targets, size), inputs]


def _with_loss(fields: list[Any]) -> list[Any]:
    """A segment of version 1 as one of version 2."""
    kind, role, *rest = fields
    return [kind, role, True, *rest]


def _decode_segment(fields: list[Any]) -> EncodedSegment:
    kind, role, loss, *rest = fields
    if role not in ROLES or not isinstance(loss, bool):
        raise ValueError(f"role {role!r} is none of {ROLES}, or loss {loss!r} no bool")
    if kind == _TEXT:
        size, ids = rest
        return EncodedText(_unpack(ids, size), role, loss)
    if kind != _IMAGE:
        raise ValueError(f"segment kind {kind!r}")
    height, width, size, targets, inputs = rest
    return EncodedImage(
        size=(int(height), int(width)),
        inputs=_unpack(targets if inputs is None else inputs, size),
        targets=_unpack(targets, size),
        role=role,
        loss=loss,
    )


def _item_size(indices: Int[np.ndarray, "n"]) -> int:
    if indices.size and indices.min() < 0:
        raise ValueError(f"index {indices.min()} is negative")
    return 2 if not indices.size or indices.max() < 2**16 else 4


def _pack(indices: Int[np.ndarray, "n"], size: int) -> bytes:
    return indices.astype(f"<u{size}").tobytes()


def _unpack(data: bytes, size: int) -> Int[np.ndarray, "n"]:
    return np.frombuffer(data, f"<u{size}").astype(np.int32)

"""The record of a shard: one document with its text and picture indices, as bytes."""

import dataclasses
from typing import Any

import msgpack
import numpy as np
from jaxtyping import Int

from nextflow_jax.data.documents import ROLES, Role

SCHEMA_VERSION = 1
"""Counts changes of the format below; shards carry it in their manifest."""

_TEXT, _IMAGE = 0, 1


class BrokenRecord(Exception):
    """Bytes that are no document: the loader counts and skips them."""


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedText:
    """Text ids without specials."""

    ids: Int[np.ndarray, "tokens"]
    role: Role


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


EncodedSegment = EncodedText | EncodedImage


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedDocument:
    """A document ready for the decoder. `key` names it and, after `#`, the self-correction draw."""

    key: str
    task: str
    segments: tuple[EncodedSegment, ...]


def encode(document: EncodedDocument) -> bytes:
    """The document as msgpack bytes.

    The layout is `[key, task, [segment, ...]]`, a text being `[0, role, item size, ids]` and a picture
    `[1, role, height, width, item size, targets, inputs]` with little-endian unsigned indices of 2 or 4 bytes.
    Inputs equal to the targets are stored as nil.

    Raises:
      ValueError: an unknown role, or negative indices.
    """
    return msgpack.packb([document.key, document.task, [_encode_segment(segment) for segment in document.segments]])


def decode(data: bytes) -> EncodedDocument:
    """The document that `encode` made `data` from, its indices int32.

    Raises:
      BrokenRecord: `data` is anything else.
    """
    try:
        key, task, segments = msgpack.unpackb(data)
        return EncodedDocument(str(key), str(task), tuple(_decode_segment(segment) for segment in segments))
    except (ValueError, TypeError, KeyError, IndexError, msgpack.UnpackException) as error:
        raise BrokenRecord(f"not a document record: {error}") from error


def _encode_segment(segment: EncodedSegment) -> list[Any]:
    if segment.role not in ROLES:
        raise ValueError(f"role {segment.role!r} is none of {ROLES}")
    if isinstance(segment, EncodedText):
        size = _item_size(segment.ids)
        return [_TEXT, segment.role, size, _pack(segment.ids, size)]
    size = max(_item_size(segment.inputs), _item_size(segment.targets))
    corrected = not np.array_equal(segment.inputs, segment.targets)
    inputs = _pack(segment.inputs, size) if corrected else None
    return [_IMAGE, segment.role, *map(int, segment.size), size, _pack(segment.targets, size), inputs]


def _decode_segment(fields: list[Any]) -> EncodedSegment:
    kind, role = fields[:2]
    if role not in ROLES:
        raise ValueError(f"role {role!r} is none of {ROLES}")
    if kind == _TEXT:
        size, ids = fields[2:]
        return EncodedText(_unpack(ids, size), role)
    if kind != _IMAGE:
        raise ValueError(f"segment kind {kind!r}")
    height, width, size, targets, inputs = fields[2:]
    return EncodedImage(
        size=(int(height), int(width)),
        inputs=_unpack(targets if inputs is None else inputs, size),
        targets=_unpack(targets, size),
        role=role,
    )


def _item_size(indices: Int[np.ndarray, "n"]) -> int:
    if indices.size and indices.min() < 0:
        raise ValueError(f"index {indices.min()} is negative")
    return 2 if not indices.size or indices.max() < 2**16 else 4


def _pack(indices: Int[np.ndarray, "n"], size: int) -> bytes:
    return indices.astype(f"<u{size}").tobytes()


def _unpack(data: bytes, size: int) -> Int[np.ndarray, "n"]:
    return np.frombuffer(data, f"<u{size}").astype(np.int32)

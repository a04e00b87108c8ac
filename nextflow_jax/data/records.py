"""The record of a shard: one document with its text and picture indices, as bytes.

Bytes a token on disk by `python -m experiments.bench.record_bytes`, a token being a position of the document:

    pictures' codes written as          OpenMoji 30 codes   OpenMoji 130   random, 3684   same, not resampled
    targets, inputs in 2 bytes each                 5.05           3.64           3.39                  1.97
    as many bits as the largest needs               4.61           3.17           3.33                  1.80
    2 bytes, inputs where they differ               4.97           3.50           3.11                  1.97
    bits, inputs where they differ                  4.39           2.91           2.87                  1.80
    the same, roles as numbers                      4.17           2.78           2.86                  1.80

The last is what is written. All went through ArrayRecord's zstd, which adds about 80 bytes a record: a third of what a
document of one small picture takes. Reading it takes 0.19 ms for 3684 codes instead of 0.03 ms; a training step on them
takes far longer. Text stays in whole bytes: packed to bits, 2000 tokens of prose grew by a tenth, for zstd no longer
finds what repeats.
"""

import dataclasses
from typing import Any

import msgpack
import numpy as np
from jaxtyping import Int

from nextflow_jax.data.documents import ROLES, Role

SCHEMA_VERSION = 2
"""Counts changes of the format below; shards carry it in their manifest.

1: no `loss` of segments, no `source` and `licence`, all indices of 2 or 4 bytes.
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

    The layout is `[key, task, source, licence, [segment, ...]]`. A text is `[0, role, loss, item size, ids]` with
    little-endian unsigned ids of 2 or 4 bytes; a picture `[1, role, loss, height, width, codes, bits, targets,
    changed, inputs]` with so many bits a code, lowest first: all targets, a bit for every code that says whether its
    input differs, and the inputs that do. Inputs equal to the targets leave nil for both. A role is its number in
    `documents.ROLES`.

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
        decode_segment = _decode_segment if names else _decode_segment_1
        return EncodedDocument(str(key), str(task), tuple(map(decode_segment, segments)), source, licence)
    except (ValueError, TypeError, KeyError, IndexError, msgpack.UnpackException) as error:
        raise BrokenRecord(f"not a document record: {error}") from error


def _encode_segment(segment: EncodedSegment) -> list[Any]:
    role = ROLES.index(segment.role)
    if isinstance(segment, EncodedText):
        size = _item_size(segment.ids)
        return [_TEXT, role, segment.loss, size, _pack(segment.ids, size)]
    bits = max(_bits(segment.inputs), _bits(segment.targets))
    differs = segment.inputs != segment.targets
    targets = _pack_bits(segment.targets, bits)
    head = [_IMAGE, role, segment.loss, *map(int, segment.size), len(segment.targets), bits, targets]
    if not differs.any():
        return [*head, None, None]
    return [*head, np.packbits(differs, bitorder="little").tobytes(), _pack_bits(segment.inputs[differs], bits)]


def _decode_segment(fields: list[Any]) -> EncodedSegment:
    kind, number, loss, *rest = fields
    role = ROLES[range(len(ROLES)).index(number)]
    if not isinstance(loss, bool):
        raise ValueError(f"loss {loss!r} is no bool")
    if kind == _TEXT:
        size, ids = rest
        return EncodedText(_unpack(ids, size), role, loss)
    if kind != _IMAGE:
        raise ValueError(f"segment kind {kind!r}")
    height, width, count, bits, packed, changed, packed_inputs = rest
    targets = inputs = _unpack_bits(packed, count, bits)
    if changed is not None:
        differs = _unpack_bits(changed, count, 1).astype(bool)
        inputs = targets.copy()
        inputs[differs] = _unpack_bits(packed_inputs, int(differs.sum()), bits)
    return EncodedImage((int(height), int(width)), inputs, targets, role, loss)


def _decode_segment_1(fields: list[Any]) -> EncodedSegment:
    """A segment of version 1: a text `[0, role, item size, ids]`, a picture `[1, role, height, width, item size,
    targets, inputs or nil]`, roles by name and all indices of 2 or 4 bytes."""
    kind, role = fields[:2]
    if role not in ROLES:
        raise ValueError(f"role {role!r} is none of {ROLES}")
    if kind == _TEXT:
        size, ids = fields[2:]
        return EncodedText(_unpack(ids, size), role)
    if kind != _IMAGE:
        raise ValueError(f"segment kind {kind!r}")
    height, width, size, packed, packed_inputs = fields[2:]
    targets = _unpack(packed, size)
    inputs = targets if packed_inputs is None else _unpack(packed_inputs, size)
    return EncodedImage((int(height), int(width)), inputs, targets, role)


def _item_size(indices: Int[np.ndarray, "n"]) -> int:
    return 2 if _bits(indices) <= 16 else 4


def _bits(indices: Int[np.ndarray, "n"]) -> int:
    """As many as the largest index needs, at least 1."""
    if indices.size and indices.min() < 0:
        raise ValueError(f"index {indices.min()} is negative")
    return max(1, int(indices.max(initial=0)).bit_length())


def _pack(indices: Int[np.ndarray, "n"], size: int) -> bytes:
    return indices.astype(f"<u{size}").tobytes()


def _unpack(data: bytes, size: int) -> Int[np.ndarray, "n"]:
    return np.frombuffer(data, f"<u{size}").astype(np.int32)


def _pack_bits(indices: Int[np.ndarray, "n"], bits: int) -> bytes:
    as_bytes = indices.astype("<u4").view(np.uint8).reshape(-1, 4)
    return np.packbits(np.unpackbits(as_bytes, axis=1, bitorder="little")[:, :bits], bitorder="little").tobytes()


def _unpack_bits(data: bytes, count: int, bits: int) -> Int[np.ndarray, "n"]:
    if not 1 <= bits < 32 or len(data) != -(-count * bits // 8):
        raise ValueError(f"{len(data)} bytes are not {count} indices of {bits} bits")
    wide = np.zeros((count, 32), np.uint8)
    packed = np.frombuffer(data, np.uint8)
    wide[:, :bits] = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(wide, axis=1, bitorder="little").view("<i4").reshape(count).astype(np.int32)

"""Pictures and source files for the tests of this room."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image


def encode_picture(seed, size=(24, 32), format="PNG"):
    """An encoded picture of random blocks; size is height and width."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize(size[::-1], Image.Resampling.NEAREST).save(file, format)
    return file.getvalue()


def picture_bomb(side=50_000):
    """A small PNG whose header promises side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def write_pairs(folder, count, first=0, name="pairs.jsonl"):
    """A JSONL file of captioned pictures in `folder`; returns its path."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(first, first + count):
        (folder / "images" / f"{i}.png").write_bytes(encode_picture(i))
        lines.append(json.dumps({"id": str(i), "image": f"images/{i}.png", "text": f"picture number {i}"}))
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def pairs(tmp_path):
    """A JSONL file of 30 captioned pictures."""
    return write_pairs(tmp_path / "source", 30)

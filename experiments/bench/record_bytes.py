"""Bytes a token of ways to write a picture's codes into a record, as ArrayRecord with zstd leaves them on disk.

    python -m experiments.bench.record_bytes [SHARDS ...] [--records 16000]

(from the repository's root) prints a line for every way and every set of documents: those of SHARDS, as they were
extracted, and random codes of a 512-pixel picture of 2^14 codes, of which 54% are resampled (60% drawn, a tenth of them
unchanged), and none. Ways:

    u16            targets and inputs as 2-byte integers (schema version 1)
    planes         the low bytes of all codes, then the high ones: zstd sees two alphabets instead of their mixture
    bits           as many bits a code as the largest needs
    u16 changed    inputs as a bit for every code, saying where they differ from the targets, and the codes there
    planes changed, bits changed
    records        what nextflow_jax.data.records writes: "bits changed", and roles as numbers instead of words

A token is a position of the document; text is 2-byte ids in every way. Cost: seconds. Results are in the docstring of
nextflow_jax/data/records.py.
"""

import argparse
import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import msgpack
import numpy as np
from array_record.python import array_record_module
from jaxtyping import Int

from nextflow_jax.data.records import EncodedDocument, EncodedImage, EncodedText, encode
from nextflow_jax.data.segments import count_positions
from nextflow_jax.data.shards import open_shards
from nextflow_jax.scales import ScheduleFamily, level_family

WRITER_OPTIONS = "group_size:1,zstd:3"
"""Those of nextflow_jax.data.shards."""
CODES, RESAMPLED = 2**14, 0.54

Pack = Callable[[Int[np.ndarray, "n"]], bytes]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A way to write codes."""

    pack: Pack
    changed_only: bool

    def document(self, document: EncodedDocument) -> bytes:
        """The record; fields but for the codes as nextflow_jax.data.records writes them."""
        segments = [self._segment(segment) for segment in document.segments]
        return msgpack.packb([document.key, document.task, document.source, document.licence, segments])

    def _segment(self, segment: EncodedText | EncodedImage) -> list:
        if isinstance(segment, EncodedText):
            return [0, segment.role, segment.loss, 2, segment.ids.astype("<u2").tobytes()]
        changed = segment.inputs != segment.targets
        head = [1, segment.role, segment.loss, *segment.size, 2, self.pack(segment.targets)]
        if not changed.any():
            return [*head, None]
        if self.changed_only:
            return [*head, np.packbits(changed).tobytes(), self.pack(segment.inputs[changed])]
        return [*head, self.pack(segment.inputs)]


def u16(codes: Int[np.ndarray, "n"]) -> bytes:
    """2-byte integers."""
    return codes.astype("<u2").tobytes()


def planes(codes: Int[np.ndarray, "n"]) -> bytes:
    """All low bytes, then all high ones."""
    return codes.astype("<u2").view(np.uint8).reshape(-1, 2).T.tobytes()


def bits(codes: Int[np.ndarray, "n"]) -> bytes:
    """As many bits a code as the largest needs."""
    width = max(1, int(codes.max()).bit_length()) if codes.size else 1
    return np.packbits((codes[:, None] >> np.arange(width)) & 1).tobytes()


LAYOUTS = {
    f"{pack.__name__}{' changed' if changed_only else ''}": Layout(pack, changed_only)
    for changed_only in (False, True)
    for pack in (u16, planes, bits)
}


def random_documents(count: int, resampled: float) -> tuple[list[EncodedDocument], ScheduleFamily]:
    """Captioned square pictures of the 512 level; their codes are as incompressible as codes can be."""
    rng = np.random.default_rng(0)
    family = level_family(512)
    n = family.schedule((512, 512)).num_tokens
    documents = []
    for i in range(count):
        targets, drawn = rng.integers(0, CODES, (2, n)).astype(np.int32)
        inputs = np.where(rng.random(n) < resampled, drawn, targets)
        words = EncodedText(rng.integers(0, 30_000, 40).astype(np.int32), "prompt")
        picture = EncodedImage((512, 512), inputs, targets, "response")
        documents.append(EncodedDocument(f"random/{i:08d}#0", "text_to_image", (words, picture)))
    return documents, family


def shard_documents(directory: str, count: int) -> tuple[list[EncodedDocument], ScheduleFamily]:
    """The first records of the training split."""
    shards = open_shards(directory)
    source = shards.source("train")
    return [source[i] for i in range(min(count, len(source)))], shards.manifest.schedule_family


def bytes_on_disk(records: Iterator[bytes]) -> int:
    """Size of an ArrayRecord file of these."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "shard"
        writer = array_record_module.ArrayRecordWriter(str(path), WRITER_OPTIONS)
        for record in records:
            writer.write(record)
        writer.close()
        return path.stat().st_size


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="*", metavar="SHARDS", help="directories that nextflow_jax.extract wrote")
    parser.add_argument("--records", type=int, default=16_000, help="at most so many of each")
    options = parser.parse_args()
    sets = {name: shard_documents(name, options.records) for name in options.shards}
    few = max(1, options.records // 10)
    sets["random, resampled"] = random_documents(few, RESAMPLED)
    sets["random, plain"] = random_documents(few, 0.0)
    for name, (documents, family) in sets.items():
        tokens = sum(count_positions(document, family).plain for document in documents)
        print(f"{name}: {len(documents):,} records, {tokens:,} tokens; bytes a token")
        ways = {way: layout.document for way, layout in LAYOUTS.items()} | {"records": encode}
        sizes = {way: bytes_on_disk(map(write, documents)) for way, write in ways.items()}
        for way, size in sizes.items():
            print(f"  {way:16}{size / tokens:7.3f}  {size / sizes['u16'] - 1:+7.1%}")


if __name__ == "__main__":
    main()

"""Source files of a run over many documents: OpenMoji's pictures under augmentations, in three formats and five tasks.

Document i of a kind shows picture i mod P with augmentation i div P, so all of them differ: a shift by up to three
pixels, one of 64 tints, and a flip that these two decide (a picture that is its own mirror image must not come twice).
Every hundredth document is written a second time under another id, as what exact deduplication is to find. Beside every
file lie hashes of its documents' contents, made here and by no code of the package: `expected_documents` says from them
how many ought to be left.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import pathlib
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from jaxtyping import UInt8, UInt64
from PIL import Image

from nextflow_jax.data.atomic_files import write_atomically
from nextflow_jax.data.openmoji.tasks import edit_pairs
from nextflow_jax.data.pictures import PicturesConfig, PictureSet, open_pictures

SIDE = 16
"""Pixels of a picture: as few as the tokenizer of the quickstart makes sense of, for a million of them on two cores."""
PER_FILE = 10_000
SHARES = {"pairs": 0.45, "captions": 0.2, "text": 0.2, "edits": 0.1, "interleaved": 0.05}
"""Of the documents, by kind; they are all of another task."""
COPIED = 100
"""Every so many-th document comes twice."""

_SHIFT = 3
_TINTS = [tuple(tint) for tint in itertools.product((1.0, 0.94, 0.88, 0.82), repeat=3)]
_SHIFTS = [(down, right) for down in range(-_SHIFT, _SHIFT + 1) for right in range(-_SHIFT, _SHIFT + 1)]
_WORDINGS = (
    "{name}",
    "a picture of {name}",
    "{name}, as an emoji",
    "an icon that shows {name}",
    "{name} ({subgroup})",
    "{group}: {name}",
)
_ROW_GROUP = 1000


@dataclasses.dataclass(frozen=True)
class Made:
    """A document as it is written: its fields, and what deduplication is to see of it."""

    id: str
    pictures: tuple[bytes, ...]
    texts: tuple[str, ...]
    label: str = ""

    def digest(self, kind: str) -> int:
        """Equal for documents of one kind with the same pictures and texts."""
        parts = [kind.encode(), *self.pictures, *(text.encode() for text in self.texts)]
        lengths = b"".join(len(part).to_bytes(8, "big") for part in parts)
        return int.from_bytes(hashlib.blake2b(lengths + b"".join(parts), digest_size=8).digest(), "big")


def write_sources(folder: pathlib.Path, documents: int, pictures_root: str, workers: int) -> None:
    """Writes the files of all kinds that are not there yet, in worker processes.

    Args:
      folder: gets `pairs-00000.parquet` and so on, each with a .hashes.npy.
      documents: different ones, over all kinds.
      pictures_root: of OpenMoji, built there when it is not there yet.
      workers: processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    open_pictures(_pictures_config(pictures_root))
    jobs = [
        (folder / f"{kind}-{number:05d}.{_FORMATS[kind]}", start, min(start + PER_FILE, count))
        for kind, count in kind_counts(documents).items()
        for number, start in enumerate(range(0, count, PER_FILE))
    ]
    todo = [job for job in jobs if not job[0].is_file()]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        list(pool.map(functools.partial(_write_file, pictures_root), todo))


def kind_counts(documents: int) -> dict[str, int]:
    """Different documents of every kind; the first takes what rounding leaves."""
    counts = {kind: int(documents * share) for kind, share in SHARES.items()}
    counts["pairs"] += documents - sum(counts.values())
    return counts


def expected_documents(folder: pathlib.Path) -> tuple[int, int]:
    """(documents written, different ones among them), from the hashes."""
    hashes = np.concatenate([np.load(path) for path in sorted(folder.glob("*.hashes.npy"))])
    return len(hashes), len(np.unique(hashes))


def content_hashes(folder: pathlib.Path, kind: str) -> UInt64[np.ndarray, "documents"]:
    """Of the documents of a kind by number, copies left out."""
    hashes = []
    for path in sorted(folder.glob(f"{kind}-*.hashes.npy")):
        with_copies = np.load(path)
        # The first of every hundred is followed by its copy, and files begin with the first of a hundred.
        copies = np.arange(1, len(with_copies), COPIED + 1)
        hashes.append(np.delete(with_copies, copies))
    return np.concatenate(hashes)


def _write_file(pictures_root: str, job: tuple[pathlib.Path, int, int]) -> None:
    path, start, stop = job
    kind = path.name.partition("-")[0]
    source = _Source.open(pictures_root)
    hashes: list[int] = []

    def documents() -> Iterator[Made]:
        for number in range(start, stop):
            made = source.make(kind, number)
            hashes.append(made.digest(kind))
            yield made
            if number % COPIED == 0:
                hashes.append(hashes[-1])
                yield dataclasses.replace(made, id=f"{made.id}-copy")

    def write(partial: pathlib.Path) -> None:
        _WRITERS[kind](partial, documents())
        np.save(path.with_name(f"{path.name}.hashes.npy"), np.asarray(hashes, np.uint64))

    write_atomically(path, write)


@dataclasses.dataclass(frozen=True)
class _Source:
    """OpenMoji's pictures in memory, and what documents are made of."""

    pictures: PictureSet
    images: dict[str, UInt8[np.ndarray, "H W 3"]]
    keys: tuple[str, ...]
    edits: tuple[tuple[str, str, str], ...]
    """Before, after, instruction."""

    @classmethod
    @functools.cache
    def open(cls, root: str) -> "_Source":
        pictures = open_pictures(_pictures_config(root))
        edits = tuple((pair.before_key, pair.after_key, pair.instruction) for pair in edit_pairs(pictures, "train"))
        keys = tuple(pictures.split("train"))
        return cls(pictures, dict(zip(keys, pictures.images(keys))), keys, edits)

    def make(self, kind: str, number: int) -> Made:
        """Document `number` of a kind."""
        name = f"{number:08d}"
        augmentation, place = divmod(number, len(self.edits if kind == "edits" else self.keys))
        if kind == "edits":
            before, after, instruction = self.edits[place]
            pictures = (self.picture(before, augmentation), self.picture(after, augmentation))
            return Made(name, pictures, (instruction,), self.pictures.info(after).group)
        info = self.pictures.info(self.keys[place])
        if kind == "text":
            others = [self.name((place + step * (augmentation + 1)) % len(self.keys)) for step in (0, 1, 2)]
            question = f"to which group belong {others[0]}, {others[1]} and {others[2]}, number {augmentation}?"
            return Made(name, (), (question, f"{info.group}, {info.subgroup}"))
        if kind == "interleaved":
            other = self.keys[(place + augmentation + 1) % len(self.keys)]
            pictures = (self.picture(info.key, augmentation), self.picture(other, augmentation))
            return Made(name, pictures, (self.words(info.key, number), self.words(other, number + 1)))
        return Made(name, (self.picture(info.key, augmentation),), (self.words(info.key, number),), info.group)

    def words(self, key: str, number: int) -> str:
        """The caption of a picture in one of the wordings."""
        info = self.pictures.info(key)
        wording = _WORDINGS[number % len(_WORDINGS)]
        return wording.format(name=info.captions["en"], group=info.group, subgroup=info.subgroup)

    def name(self, place: int) -> str:
        return self.pictures.info(self.keys[place]).captions["en"]

    def picture(self, key: str, augmentation: int) -> bytes:
        """A picture as PNG, under augmentation 0 to 3135."""
        shift, tint = divmod(augmentation, len(_TINTS))
        (down, right), tinted = _SHIFTS[(shift + len(_SHIFTS) // 2) % len(_SHIFTS)], _TINTS[tint]
        image = self.images[key]
        image = image[:, ::-1] if (shift + tint) % 2 else image
        image = np.roll(image, (down, right), (0, 1))
        return encode((image * np.asarray(tinted, np.float32)).astype(np.uint8))


def encode(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """A picture as PNG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _pictures_config(root: str) -> PicturesConfig:
    return PicturesConfig(root=root, size=(SIDE, SIDE), subset="all")


def _write_captioned(path: pathlib.Path, documents: Iterable[Made]) -> None:
    """Parquet of `id`, `image`, `text` and `label`."""
    schema = pyarrow.schema([("id", "string"), ("image", "binary"), ("text", "string"), ("label", "string")])
    _write_parquet(
        path,
        schema,
        ({"id": one.id, "image": one.pictures[0], "text": one.texts[0], "label": one.label} for one in documents),
    )


def _write_interleaved(path: pathlib.Path, documents: Iterable[Made]) -> None:
    """Parquet in OmniCorpus' form: text, picture, text, picture."""
    lists = [("texts", pyarrow.list_(pyarrow.string())), ("images", pyarrow.list_(pyarrow.binary()))]
    rows = (
        {
            "id": one.id,
            "texts": [part for text in one.texts for part in (text, None)],
            "images": [part for picture in one.pictures for part in (None, picture)],
        }
        for one in documents
    )
    _write_parquet(path, pyarrow.schema([("id", pyarrow.string()), *lists]), rows)


def _write_parquet(path: pathlib.Path, schema: pyarrow.Schema, rows: Iterator[dict[str, Any]]) -> None:
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while group := list(itertools.islice(rows, _ROW_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))


def _write_edits(path: pathlib.Path, documents: Iterable[Made]) -> None:
    """WebDataset: two pictures and the segments as JSON."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for one in documents:
            segments = [
                {"image": "0.png", "role": "prompt"},
                {"text": one.texts[0], "role": "prompt"},
                {"image": "1.png", "role": "response"},
            ]
            fields = {"task": "edit", "segments": segments, "images": ["0.png", "1.png"], "label": one.label}
            members = {"0.png": one.pictures[0], "1.png": one.pictures[1], "json": json.dumps(fields).encode()}
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{one.id}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _write_text(path: pathlib.Path, documents: Iterable[Made]) -> None:
    """JSON lines of prompt and response."""
    with open(path, "w", encoding="utf-8") as file:
        for one in documents:
            prompt, response = one.texts
            segments = [{"text": prompt, "role": "prompt"}, {"text": response, "role": "response"}]
            file.write(json.dumps({"id": one.id, "task": "text", "segments": segments}) + os.linesep)


_FORMATS = {"pairs": "parquet", "captions": "parquet", "text": "jsonl", "edits": "tar", "interleaved": "parquet"}
_WRITERS: dict[str, Callable[[pathlib.Path, Iterable[Made]], None]] = {
    "pairs": _write_captioned,
    "captions": _write_captioned,
    "text": _write_text,
    "edits": _write_edits,
    "interleaved": _write_interleaved,
}

"""What of a document is compared with all others: 64-bit hashes of its key, contents, pictures, texts and label.

Workers make them, parts of a corpus keep them as columns, and the selection needs nothing else. A corpus's columns are
those of its parts put one after the other.
"""

import dataclasses
import hashlib
import io
import pathlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int, Shaped, UInt, UInt8
from PIL import Image, ImageOps

from nextflow_jax.data.corpus.raw import Drop, RawDocument, RawImage, RawText
from nextflow_jax.data.filters.config import FiltersConfig
from nextflow_jax.data.filters.perceptual import perceptual_hash
from nextflow_jax.data.image_files import FORMATS, RefusedImage, flatten
from nextflow_jax.errors import UserError

NO_HASH = 0
"""Stands for what a document does not have: a text, pictures, a label. No hash of anything is 0."""

_BACKGROUND = "#ffffff"
_LOOK_SIDE = 64
"""Pixels a side that the perceptual hash needs at least, to shrink from."""
_SCALARS = ("key", "task", "content", "pictures", "text", "label")


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """The hashes of one document, each the first 64 bits of a SHA-256 where nothing else is said."""

    key: int
    task: int
    content: int
    """Of task, picture bytes and normalised texts, in order."""
    pictures: int
    """Of the bytes of all pictures in order; NO_HASH: it has none."""
    text: int
    """Of all normalised texts in order; NO_HASH: it has none."""
    label: int
    """NO_HASH: it has none."""
    perceptual: tuple[int, ...]
    """Of every picture in order, see perceptual.py; empty when pictures are not decoded."""
    colours: tuple[tuple[int, int, int], ...]
    """Mean red, green and blue of every picture."""


@dataclasses.dataclass(frozen=True, eq=False)
class FingerprintColumns:
    """The fingerprints of many documents, in corpus order."""

    key: UInt[np.ndarray, "n"]
    task: UInt[np.ndarray, "n"]
    content: UInt[np.ndarray, "n"]
    pictures: UInt[np.ndarray, "n"]
    text: UInt[np.ndarray, "n"]
    label: UInt[np.ndarray, "n"]
    num_pictures: Int[np.ndarray, "n"]
    """How many entries of the two below are the document's."""
    perceptual: UInt[np.ndarray, "pictures"]
    colours: UInt8[np.ndarray, "pictures 3"]

    def __len__(self) -> int:
        return len(self.key)


def fingerprint(document: RawDocument, config: FiltersConfig) -> Fingerprint | Drop:
    """The fingerprint of a document, or why it is dropped: the reason of a picture that cannot be decoded.

    Args:
      document: after its filters.
      config: only `pictures.decode` matters; without it `perceptual` and `colours` are empty.
    """
    contents, pictures, texts = [document.task], [], []
    for segment in document.segments:
        if isinstance(segment, RawText):
            texts.append(normalise(segment.text))
            contents.append("text " + texts[-1])
        else:
            pictures.append(hashlib.sha256(segment.data).hexdigest())
            contents.append("image " + pictures[-1])
    seen = []
    if config.pictures.decode:
        try:
            seen = [_look(segment.data, document.key) for segment in document.segments if isinstance(segment, RawImage)]
        except RefusedImage as refused:
            return Drop(document.key, refused.reason)
    return Fingerprint(
        key=hash64(document.key),
        task=hash64(document.task),
        content=hash64(*contents),
        pictures=hash64(*pictures) if pictures else NO_HASH,
        text=hash64(*texts) if any(texts) else NO_HASH,
        label=hash64(document.label) if document.label else NO_HASH,
        perceptual=tuple(bits for bits, _ in seen),
        colours=tuple(colour for _, colour in seen),
    )


def to_columns(fingerprints: Sequence[Fingerprint]) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The fingerprints as columns by name (see FingerprintColumns), to be saved with a part."""
    columns = {name: np.asarray([getattr(one, name) for one in fingerprints], np.uint64) for name in _SCALARS}
    columns["num_pictures"] = np.asarray([len(one.perceptual) for one in fingerprints], np.int32)
    columns["perceptual"] = np.asarray([bits for one in fingerprints for bits in one.perceptual], np.uint64)
    colours = [colour for one in fingerprints for colour in one.colours]
    columns["colours"] = np.asarray(colours, np.uint8).reshape(-1, 3)
    return columns


def from_columns(columns: Mapping[str, Shaped[np.ndarray, "..."]]) -> FingerprintColumns:
    """The columns of a corpus; other names in `columns` are ignored.

    Raises:
      UserError: a column is missing, or they are not of the same documents.
    """
    names = [field.name for field in dataclasses.fields(FingerprintColumns)]
    missing = [name for name in names if name not in columns]
    if missing:
        raise UserError(f"the corpus index has no column {', '.join(missing)}; ingest the corpus again")
    joined = FingerprintColumns(**{name: columns[name] for name in names})
    lengths = {len(columns[name]) for name in (*_SCALARS, "num_pictures")}
    pictures = int(joined.num_pictures.sum())
    if len(lengths) > 1 or {len(joined.perceptual), len(joined.colours)} != {pictures}:
        raise UserError("the columns of the corpus index are of different lengths; ingest the corpus again")
    return joined


def concatenate(parts: Sequence[Mapping[str, Shaped[np.ndarray, "..."]]]) -> FingerprintColumns:
    """The columns of parts, one after the other; of no parts, columns of no documents."""
    empty = to_columns([])
    return from_columns({name: np.concatenate([empty[name], *(part[name] for part in parts)]) for name in empty})


def normalise(text: str) -> str:
    """The text as it is compared: NFKC, case folded, punctuation out, white space single.

    A text of punctuation alone keeps it.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(" " if unicodedata.category(character)[0] in "PZC" else character for character in folded).split()
    return " ".join(words or folded.split())


def hash64(*parts: str) -> int:
    """The first 64 bits of the SHA-256 of `parts`; never NO_HASH."""
    digest = hashlib.sha256()
    for part in _delimited(parts):
        digest.update(part)
    return int.from_bytes(digest.digest()[:8], "big") or 1


def mix(*hashes: UInt[np.ndarray, "..."] | np.uint64) -> UInt[np.ndarray, "..."]:
    """One 64-bit hash of several, element by element: the finaliser of SplitMix64 (Steele et al. 2014) after each."""
    mixed = np.zeros(1, np.uint64)
    for values in hashes:
        mixed = mixed ^ values
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed


def _delimited(parts: Iterable[str]) -> Iterable[bytes]:
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        yield len(data).to_bytes(8, "big")
        yield data


def _look(data: bytes, key: str) -> tuple[int, tuple[int, int, int]]:
    """The perceptual hash and the mean colour of an encoded picture."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            # JPEGs are decoded at a fraction of their size, the least above what the hash looks at.
            picture.draft("RGB", (_LOOK_SIDE, _LOOK_SIDE))
            if picture.mode in ("I", "F") or picture.mode.startswith("F;"):
                raise RefusedImage(pathlib.Path(key), "no pixel range")
            return perceptual_hash(flatten(ImageOps.exif_transpose(picture), _BACKGROUND))
    except RefusedImage:
        raise
    except Exception as error:
        # Decoders of broken files raise all kinds of errors, SyntaxError and struct.error among them.
        raise RefusedImage(pathlib.Path(key), "damaged") from error

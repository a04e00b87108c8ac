"""OpenMoji as files of every format that ingest reads: what `experiments/data/openmoji.py` ingests.

    python -m experiments.data.openmoji_files --out data/openmoji_files --size 64 --subset quickstart

OUT gets images/*.png with pairs.jsonl, edits.jsonl and conversations.json beside them, web-*.tar, and pairs.parquet.
"""

import argparse
import io
import json
import pathlib
import tarfile
from collections.abc import Sequence

import pyarrow
import pyarrow.parquet
from PIL import Image as PillowImage

from nextflow_jax.data import documents
from nextflow_jax.data.openmoji.tasks import make_documents
from nextflow_jax.data.pictures import SPLITS, PicturesConfig, PictureSet, open_pictures
from nextflow_jax.errors import run_entry_point

PICTURES_PER_TAR = 200


def main(arguments: Sequence[str]) -> None:
    """Writes the files; see the module's docstring."""
    parser = argparse.ArgumentParser("python -m experiments.data.openmoji_files", description=__doc__)
    parser.add_argument("--out", default="data/openmoji_files", type=pathlib.Path)
    parser.add_argument("--size", default=64, type=int, help="pixels a side (%(default)s)")
    parser.add_argument("--subset", default="quickstart", help="quickstart, all or tiny (%(default)s)")
    flags = parser.parse_args(arguments)
    pictures = open_pictures(PicturesConfig(size=(flags.size, flags.size), subset=flags.subset))
    keys = [key for split in SPLITS for key in pictures.split(split)]
    encoded = {key: encode(pictures, key) for key in keys}
    captions = {key: next(iter(pictures.info(key).captions.values())) for key in keys}
    write_jsonl(flags.out, pictures, encoded, captions)
    write_conversations(flags.out, captions)
    write_tars(flags.out, encoded, captions)
    write_parquet(flags.out, encoded, captions)
    print(f"{flags.out}: {len(keys)} pictures of {flags.size} pixels in every format")


def encode(pictures: PictureSet, key: str) -> bytes:
    """A picture as PNG."""
    file = io.BytesIO()
    PillowImage.fromarray(pictures[key].image).save(file, "PNG")
    return file.getvalue()


def write_jsonl(out: pathlib.Path, pictures: PictureSet, encoded: dict[str, bytes], captions: dict[str, str]) -> None:
    """Pairs in the short form, with the group as the label; edits in the full form."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    pairs, edits = [], []
    for key, data in encoded.items():
        (out / "images" / f"{key}.png").write_bytes(data)
        label = pictures.info(key).group
        pairs.append({"id": key, "image": f"images/{key}.png", "text": captions[key], "label": label})
    for document in make_documents(pictures, "train", ("edit",), seed=0):
        segments = [
            {"text": segment.text, "role": segment.role}
            if isinstance(segment, documents.Text)
            else {"image": f"images/{segment.key}.png", "role": segment.role}
            for segment in document.segments
        ]
        edits.append({"id": document.key, "task": "edit", "segments": segments})
    for name, records in (("pairs", pairs), ("edits", edits)):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_conversations(out: pathlib.Path, captions: dict[str, str]) -> None:
    """LLaVA's form: a question about every picture, and its answer."""
    conversations = [
        {
            "id": key,
            "image": f"images/{key}.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is this?"},
                {"from": "gpt", "value": caption},
            ],
        }
        for key, caption in captions.items()
    ]
    (out / "conversations.json").write_text(json.dumps(conversations), encoding="utf-8")


def write_tars(out: pathlib.Path, encoded: dict[str, bytes], captions: dict[str, str]) -> None:
    """WebDataset's form: key.png and key.txt, one after the other."""
    keys = list(encoded)
    for number, first in enumerate(range(0, len(keys), PICTURES_PER_TAR)):
        with tarfile.open(out / f"web-{number:05d}.tar", "w") as tar:
            for key in keys[first : first + PICTURES_PER_TAR]:
                for suffix, data in (("png", encoded[key]), ("txt", captions[key].encode())):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def write_parquet(out: pathlib.Path, encoded: dict[str, bytes], captions: dict[str, str]) -> None:
    """img2dataset's form: key, caption, and the picture's bytes."""
    columns = {"key": list(encoded), "caption": list(captions.values()), "image": list(encoded.values())}
    pyarrow.parquet.write_table(pyarrow.table(columns), out / "pairs.parquet", row_group_size=PICTURES_PER_TAR)


if __name__ == "__main__":
    run_entry_point(main)

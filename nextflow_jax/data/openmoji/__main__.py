"""`python -m nextflow_jax.data.openmoji`: builds OpenMoji and prints what it holds as one JSON object."""

import argparse
import collections
import json
import time
from collections.abc import Sequence

from nextflow_jax.data.documents import TASKS
from nextflow_jax.data.openmoji.tasks import make_documents
from nextflow_jax.data.pictures import SPLITS, PicturesConfig, PictureSet, open_pictures
from nextflow_jax.errors import UserError, run_entry_point


def main(arguments: Sequence[str]) -> None:
    """Builds or opens the data set that the arguments ask for, and prints its counts."""
    config = PicturesConfig()
    parser = argparse.ArgumentParser("python -m nextflow_jax.data.openmoji", description=__doc__)
    parser.add_argument("--root", default=config.root, help="folder of the data set (%(default)s)")
    parser.add_argument("--size", default="x".join(map(str, config.size)), help="HEIGHTxWIDTH in pixels (%(default)s)")
    parser.add_argument("--background", default=config.background, help="colour #rrggbb (%(default)s)")
    parser.add_argument("--subset", default=config.subset, help="quickstart, all or tiny (%(default)s)")
    parser.add_argument("--languages", default=",".join(config.languages), help="codes, e.g. en,ja,fr (%(default)s)")
    flags = parser.parse_args(arguments)
    config = PicturesConfig(
        root=flags.root,
        size=_parse_size(flags.size),
        background=flags.background,
        subset=flags.subset,
        languages=tuple(flags.languages.split(",")),
    )
    start = time.perf_counter()
    pictures = open_pictures(config)
    print(json.dumps({"seconds": round(time.perf_counter() - start, 2), **describe(pictures)}, ensure_ascii=False))


def describe(pictures: PictureSet) -> dict:
    """Counts of pictures a split, group and attribute, of twins, and of documents a split and task."""
    infos = pictures.infos()
    count = collections.Counter
    return {
        "pictures": len(pictures),
        "fingerprint": pictures.fingerprint,
        **pictures.metadata["sources"],
        "splits": count(info.split for info in infos),
        "groups": count(info.group for info in infos),
        "attributes": count(name for info in infos for name in info.attributes),
        "with_twins": len(pictures.twins),
        "train_twins": len(pictures.metadata["train_twins"]),
        "documents": {
            split: count(document.task for document in make_documents(pictures, split, TASKS, seed=0))
            for split in SPLITS
        },
    }


def _parse_size(size: str) -> tuple[int, int]:
    try:
        height, width = map(int, size.split("x"))
    except ValueError:
        raise UserError(f"--size {size}: expects HEIGHTxWIDTH in pixels, e.g. 32x32") from None
    return height, width


if __name__ == "__main__":
    run_entry_point(main)

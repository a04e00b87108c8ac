"""A process that reads global batches and notes what it saw, and its notes; experiments/bench/data_resume.py kills it.

    python -m experiments.bench.batch_reader SHARDS FOLDER [--part 0 --parts 1 --stop N --workers W --threads T --plain]

For every batch a line goes to FOLDER/seen.jsonl: the batch's number, a hash of every row's arrays, and one of every
document's tokens in it. Then FOLDER/position, one integer, is replaced: the number of the next batch. It is all that
a run remembers, and where the next run begins.
"""

import argparse
import collections
import hashlib
import json
import logging
import pathlib
import time
from collections.abc import Sequence

import numpy as np

from nextflow_jax import sequence
from nextflow_jax.data.atomic_files import write_atomically
from nextflow_jax.data.mixture import MixtureConfig
from nextflow_jax.data.pipeline import PipelineConfig, make_batches, make_plan
from nextflow_jax.data.segments import to_segments
from nextflow_jax.data.shards import open_shards
from nextflow_jax.errors import run_entry_point

BATCH_SIZE = 8
SEED = 0
PLAIN = PipelineConfig(row_length=256, window_batches=4, condition_dropout=0.0, packing="compute_budget", ranks=4)
"""Every document once an epoch, as it is."""
MIXED = PipelineConfig(
    row_length=256,
    window_batches=4,
    condition_dropout=0.1,
    task_inversion=0.2,
    packing="compute_budget",
    ranks=4,
    mixture=MixtureConfig((("text_to_image", 0.7), ("edit", 0.3))),
)
"""With all that changes what a batch holds."""


def main(arguments: Sequence[str]) -> None:
    """Reads until `--stop`; see the module's docstring."""
    parser = argparse.ArgumentParser("python -m experiments.bench.batch_reader", description=__doc__)
    parser.add_argument("shards")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="where a folder without a position begins")
    parser.add_argument("--stop", type=int, default=10**9)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--pause", type=float, default=0.0, help="seconds after every batch, as if a step were computed"
    )
    parser.add_argument("--plain", action="store_true")
    flags = parser.parse_args(arguments)
    logging.getLogger("nextflow_jax").setLevel(logging.WARNING)
    ahead = max(2, flags.threads)
    options = {"workers": flags.workers, "reader_threads": flags.threads, "prefetch_batches": ahead}
    config = PipelineConfig(**{**vars(PLAIN if flags.plain else MIXED), **options})
    start = read_position(flags.folder, flags.start)
    batches = make_batches(config, open_shards(flags.shards), "train", SEED, BATCH_SIZE, start, flags.part, flags.parts)
    flags.folder.mkdir(parents=True, exist_ok=True)
    with open(flags.folder / "seen.jsonl", "a", encoding="utf-8") as seen:
        for n in range(start, flags.stop):
            # A killed process may have left half a line.
            seen.write("\n" + json.dumps([n, *describe(next(batches))]))
            seen.flush()
            save_position(flags.folder, n + 1)
            time.sleep(flags.pause)


def read_position(folder: pathlib.Path, start: int) -> int:
    """The number of the next batch."""
    path = folder / "position"
    return int(path.read_text()) if path.is_file() else start


def save_position(folder: pathlib.Path, position: int) -> None:
    """Replaces it in one step."""
    write_atomically(folder / "position", lambda path: path.write_text(str(position)))


def describe(batch: dict[str, np.ndarray]) -> tuple[list[str], list[list[str]]]:
    """(a hash of every row, over all its arrays; in each row a hash of every document's tokens)."""
    rows, documents = [], []
    for row in range(len(batch["tokens"])):
        digest = hashlib.sha256()
        for name in sorted(batch):
            digest.update(name.encode() + np.ascontiguousarray(batch[name][row]).tobytes())
        rows.append(digest.hexdigest()[:16])
        tokens, document = batch["tokens"][row], batch["document"][row]
        documents.append([hash_tokens(tokens[document == number]) for number in range(1, document.max() + 1)])
    return rows, documents


def hash_tokens(tokens: np.ndarray) -> str:
    """What a document is known by."""
    return hashlib.sha256(tokens.astype(np.int32).tobytes()).hexdigest()[:16]


def read_seen(folder: pathlib.Path) -> dict[int, list[list]]:
    """What a folder's processes noted, by the number of the batch: once for every time that it was read."""
    seen: dict[int, list[list]] = {}
    for line in (folder / "seen.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            n, *found = json.loads(line)
        except ValueError:  # the line that a killed process was writing
            continue
        seen.setdefault(n, []).append(found)
    return seen


def count_documents(shards: pathlib.Path, batches: dict[int, list[list]]) -> dict[str, object]:
    """How often each document was seen; at the ends of windows, by how much that differs between documents."""
    config, opened = PLAIN, open_shards(shards)
    source, vocabulary = opened.source("train"), opened.manifest.vocabulary
    owners: dict[str, list[str]] = {}
    for record in range(len(opened.index("train"))):
        segments = to_segments(
            source[record], opened.manifest.schedule_family, response_only=False, last_scale_context=False
        )
        tokens = sequence.flatten(segments, vocabulary, config.sequence).tokens
        owners.setdefault(hash_tokens(tokens), []).append(opened.index("train").key(record))
    counts, spreads, unknown = collections.Counter(dict.fromkeys(owners, 0)), set(), 0
    for n in sorted(batches):
        documents = [one for row in batches[n][1] for one in row]
        unknown += sum(one not in owners for one in documents)
        counts.update(documents)
        if (n + 1) % config.window_batches == 0:
            # Draws of a document may be alike in all tokens: then so many records have one hash.
            shares = [counts[one] / len(keys) for one, keys in owners.items()]
            spreads.add(max(shares) - min(shares) <= 1)
    plan = make_plan(config, opened, "train", SEED, BATCH_SIZE)
    planned = sum(len(row.records) for n in sorted(batches) for row in plan.batch(n))
    return {
        "records": sum(map(len, owners.values())),
        "epochs": round(counts.total() / sum(map(len, owners.values())), 2),
        "documents_read": counts.total(),
        "documents_planned": planned,
        "unknown": unknown,
        "at_most_one_apart_at_every_window": spreads == {True},
    }


if __name__ == "__main__":
    run_entry_point(main)

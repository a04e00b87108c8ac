"""Reads one epoch of shards as training does, packed into batches, and checks that it holds every document once.

The batches come from the pipeline; which documents they ought to hold comes from the plan, and a batch must begin as
many as the plan has for it. The keys of all records must be one of every content that was written, by the hashes beside
the source files. A run that was stopped goes on at the next batch.

Command: `python -m experiments.bench.million_read FOLDER`, as experiments/bench/million.py does; prints a JSON object.
"""

import argparse
import collections
import json
import pathlib
import time
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from experiments.bench.million_files import SHARES, content_hashes
from nextflow_jax.data.atomic_files import write_atomically
from nextflow_jax.data.pipeline import PipelineConfig, make_batches, make_plan
from nextflow_jax.data.shards import ShardSet, open_shards
from nextflow_jax.errors import UserError, run_entry_point

ROWS, ROW_LENGTH, SEED = 32, 2048, 0


def main(arguments: Sequence[str]) -> None:
    """Reads all splits once each."""
    parser = argparse.ArgumentParser("python -m experiments.bench.million_read", description=__doc__)
    parser.add_argument("folder", type=pathlib.Path, metavar="FOLDER", help="with shards/ and sources/")
    parser.add_argument("--packing", default="fixed_length")
    parser.add_argument("--workers", type=int, default=0)
    flags = parser.parse_args(arguments)
    shards = open_shards(flags.folder / "shards")
    config = PipelineConfig(
        shards=str(flags.folder / "shards"), row_length=ROW_LENGTH, packing=flags.packing, workers=flags.workers
    )
    start = time.perf_counter()
    found = [read_split(config, shards, split.name, flags.folder) for split in shards.manifest.splits]
    seconds = time.perf_counter() - start
    check_ids(shards, flags.folder / "sources")
    documents, tokens, positions = (sum(one[name] for one in found) for name in ("documents", "tokens", "positions"))
    line = {
        "documents": documents,
        "tokens": tokens,
        "batches": sum(one["batches"] for one in found),
        "padding": round(1 - tokens / positions, 4),
        "since_start_seconds": round(seconds, 1),
        "every_document_once": True,
    }
    print(json.dumps(line), flush=True)


def read_split(config: PipelineConfig, shards: ShardSet, split: str, folder: pathlib.Path) -> dict[str, int]:
    """Reads batches until every document came, and counts how often each did; `folder` keeps how far that is.

    Raises:
      UserError: a batch begins more or fewer documents than the plan has for it, or an epoch that lacks or repeats one.
    """
    index = shards.index(split)
    plan = make_plan(config, shards, split, SEED, ROWS)
    state = folder / f"read-{split}.npz"
    seen, counts = np.zeros(len(index), np.int32), np.zeros(4, np.int64)
    if state.is_file():
        with np.load(state) as saved:
            seen, counts = saved["seen"], saved["counts"]
    total, tokens, positions, number = counts.tolist()
    batches = make_batches(config, shards, split, SEED, ROWS, number, 0, 1)
    while total < len(index) or number % config.window_batches:
        batch = next(batches)
        records = np.concatenate([row.records for row in plan.batch(number)])
        begun = int(batch["document"].max(axis=1).sum())
        if begun != len(records):
            raise UserError(f"{split} batch {number}: {begun} documents where the plan has {len(records)}")
        np.add.at(seen, records, 1)
        total, number = total + len(records), number + 1
        tokens += int(np.count_nonzero(batch["document"]))
        positions += batch["document"].size
        if number % config.window_batches == 0:
            counts = np.asarray([total, tokens, positions, number])
            write_atomically(state, lambda path, now=counts: _save(path, seen, now))
    # The last window may begin further epochs: then some documents were there once more than the others.
    if total // len(index) != seen.min() or seen.max() - seen.min() > 1:
        raise UserError(
            f"{split}: after {total} documents of {len(index)}, each came {seen.min()} to {seen.max()} times"
        )
    return {"documents": total, "tokens": tokens, "positions": positions, "batches": number}


def _save(path: pathlib.Path, seen: Int[np.ndarray, "records"], counts: Int[np.ndarray, "4"]) -> None:
    with open(path, "wb") as file:
        np.savez(file, seen=seen, counts=counts)


def check_ids(shards: ShardSet, sources: pathlib.Path) -> None:
    """Compares the keys of all records, kind/.../number#draw, with the documents that were written.

    Raises:
      UserError: records of another kind than was written, or not one of every content that there was.
    """
    numbers: dict[str, list[int]] = collections.defaultdict(list)
    for split in shards.manifest.splits:
        index = shards.index(split.name)
        for record in range(len(index)):
            kind, _, name = index.key(record).partition("/")
            numbers[kind].append(int(name.rpartition("/")[2].removesuffix("#0")))
    for kind in SHARES:
        written = content_hashes(sources, kind)
        found = np.sort(written[numbers.pop(kind, [])])
        if not np.array_equal(found, np.unique(written)):
            raise UserError(f"{kind}: {len(found)} records are not one of each of {len(np.unique(written))} contents")
    if numbers:
        raise UserError(f"shards hold records of {', '.join(numbers)}, which were not written")


if __name__ == "__main__":
    run_entry_point(main)

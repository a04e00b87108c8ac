"""Reading and packing against peers on the same documents: WebDataset's reader, grain's own packers.

What it asks: what does random access to shards cost beside a sequential tar, and what does planning rows from lengths
gain over packing documents as they come.

Documents are `table2_documents` of the 512 level. Reading turns files into int32 arrays of ids and codes, in one
thread, files in the page cache: our shards in order and shuffled over all of them; WebDataset's tars in order and
through its shuffle buffer of 1000 after shuffled tars, once with our own record in a member, once with an .npy member
an array, which is the usual way (codes in 2 bytes, text ids in 4).

Packing makes rows of 20,480 positions of documents laid out by `sequence.flatten`, all its arrays, in batches of 8, in
one thread: from documents in memory, and from shards. For grain's packers the ranges of attention stay as they are in
the document, which an exact loader would have to mend. Padding, imbalance and split documents are those of batches of
64 rows, one a rank, by the FLOPs of the 7B decoder; a document that is cut in two sees less, which is counted.

Command (WebDataset is no dependency): `pip install webdataset==1.0.2`, `python -m experiments.bench.data_peers`
Cost: 45 s on one core, 1 GiB.
Result (an AMD EPYC, Python 3.11, NumPy 2.4.6, grain 0.2.18, webdataset 1.0.2; medians of 3 turns):

    read                                 documents/s   bytes a token
    our shards, in order                      10,331            3.07
    our shards, shuffled over all              9,273            3.07
    tars of our records, in order              5,243            4.19
    tars of our records, buffer of 1000        5,817            4.19
    tars of arrays, in order                   4,974            5.76
    tars of arrays, buffer of 1000             4,743            5.76

    packed                      in memory, documents/s   from shards   padding   imbalance   cut: documents, pictures
    ours, compute budget                        16,995         4,126    0.0001      1.0075          0        0
    grain, first fit of 8 rows                   4,311         1,963    0.0206      1.1517          0        0
    grain, first fit of 64 rows                  1,286         1,358    0.0035      1.1513          0        0
    grain, concat then split                     4,170         2,195    0.0001      1.1083        767      554

Where peers are ahead: tars are read front to back, so a bucket that is slow at random access suits them (not measured
here: all files were local); grain's packers need no index of lengths beforehand and take any elements as they come.
Concatenating pads as little as our plan does, but cuts a document at the end of every row but the last.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
import webdataset
from grain import experimental as packers

from experiments.bench.loader import pipeline
from experiments.bench.table2_documents import SHARD_DOCUMENTS, level_shape, mixed_documents, write_shards
from experiments.nextflow.decoder import CODE_DIM, CODES, MAX_SCALES, QWEN_ROWS
from nextflow_jax import sequence
from nextflow_jax.data.costs import RowCost
from nextflow_jax.data.pipeline import make_batches, make_plan
from nextflow_jax.data.records import EncodedDocument, EncodedText, decode, encode
from nextflow_jax.data.segments import to_segments
from nextflow_jax.data.shards import ShardSet
from nextflow_jax.data.tally import imbalance
from nextflow_jax.errors import run_entry_point
from nextflow_jax.models.presets import decoder_preset
from nextflow_jax.training.row_cost import row_cost
from nextflow_jax.vocabulary import Vocabulary

LEVEL = 512
DOCUMENTS = 3000
RANKS, BATCHES = 64, 12
"""Of the packing whose balance is judged."""
SPEED_ROWS = 8
SHUFFLE_BUFFER = 1000

ROUNDS = 3
Packer = Callable[[grain.IterDataset], grain.IterDataset]
_NO_THREADS = grain.ReadOptions(0, 0)


def main(arguments: Sequence[str]) -> None:
    """Prints one JSON object a measurement."""
    parser = argparse.ArgumentParser("python -m experiments.bench.data_peers", description=__doc__.split("\n")[0])
    parser.add_argument("--parts", default="read,balance,speed", help="which to measure (%(default)s)")
    parts = parser.parse_args(arguments).parts.split(",")
    warnings.filterwarnings("ignore", module="webdataset")
    shape = level_shape(LEVEL)
    documents = mixed_documents(DOCUMENTS, shape, 0)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        shards = write_shards(folder / "shards", documents, shape)
        if "read" in parts:
            measure_reading(folder, documents, shards)
        if "balance" in parts:
            measure_balance(shards)
        if "speed" in parts:
            measure_speed(shards)


def measure_reading(folder: pathlib.Path, documents: Sequence[EncodedDocument], shards: ShardSet) -> None:
    """Prints documents a second and bytes of every way to keep and to read the documents."""
    tokens = int(shards.index("train").plain.sum())
    whole = write_tars(folder / "records", documents, lambda document: {"record": encode(document)})
    shuffled = np.random.default_rng(0).permutation(len(documents)).tolist()
    arrays = write_tars(folder / "arrays", documents, _members)
    ways: dict[str, tuple[str, Callable[[], Iterator[list[np.ndarray]]]]] = {
        "our shards, in order": ("shards", lambda: read_shards(shards, range(len(documents)))),
        "our shards, shuffled": (
            "shards",
            lambda: read_shards(shards, shuffled),
        ),
        "tars of records, in order": ("records", lambda: read_record_tars(whole, 0)),
        "tars of records, buffer shuffled": ("records", lambda: read_record_tars(whole, SHUFFLE_BUFFER)),
        "tars of arrays, in order": ("arrays", lambda: read_array_tars(arrays, 0)),
        "tars of arrays, buffer shuffled": ("arrays", lambda: read_array_tars(arrays, SHUFFLE_BUFFER)),
    }
    expected = _checksum(_arrays(document) for document in documents)
    for name, (_, read) in ways.items():
        if _checksum(read()) != expected:
            raise ValueError(f"{name} gave other documents")
    seconds = _alternate({name: lambda read=read: _drain(read()) for name, (_, read) in ways.items()})
    for name, (directory, _) in ways.items():
        size = sum(path.stat().st_size for path in (folder / directory).rglob("*") if path.is_file())
        line = {
            "read": name,
            "documents_per_s": round(len(documents) / seconds[name]),
            "bytes_a_token": round(size / tokens, 2),
        }
        print(json.dumps(line), flush=True)


def read_shards(shards: ShardSet, order: Iterable[int]) -> Iterator[list[np.ndarray]]:
    """The arrays of every document, from our shards."""
    source = shards.source("train")
    return (_arrays(source[record]) for record in order)


def read_record_tars(urls: list[str], buffer: int) -> Iterator[list[np.ndarray]]:
    """From tars whose members are our records."""
    return (_arrays(decode(sample["record"])) for sample in _tars(urls, buffer))


def read_array_tars(urls: list[str], buffer: int) -> Iterator[list[np.ndarray]]:
    """From tars whose members are arrays."""
    for sample in _tars(urls, buffer).decode():
        names = sorted(name for name in sample if name.endswith(".npy"))
        yield [sample[name].astype(np.int32) for name in names]


def write_tars(
    folder: pathlib.Path, documents: Sequence[EncodedDocument], members: Callable[[EncodedDocument], dict]
) -> list[str]:
    """Tars of as many documents as a shard of ours."""
    folder.mkdir()
    urls = []
    for number, start in enumerate(range(0, len(documents), SHARD_DOCUMENTS)):
        urls.append(str(folder / f"{number:05d}.tar"))
        with webdataset.TarWriter(urls[-1]) as writer:
            for document in documents[start : start + SHARD_DOCUMENTS]:
                writer.write({"__key__": document.key.replace("#", "_"), **members(document)})
    return urls


def measure_balance(shards: ShardSet) -> None:
    """Prints padding, imbalance and cut documents of batches of 64 rows; all packers get the same documents."""
    config = dataclasses.replace(pipeline(shards, 0, 0), condition_dropout=0.0)
    cost = row_cost(decoder_preset("qwen2_5_vl_7b", Vocabulary(QWEN_ROWS, CODES), CODE_DIM, MAX_SCALES))
    index, layout = shards.index("train"), Layout(shards)
    plan = make_plan(config, shards, "train", 0, RANKS, cost)
    planned = [row.records for n in range(BATCHES) for row in plan.batch(n)]
    ours = [RowContent(int(index.plain[row].sum()), int(index.pairs[row].sum()), 0, 0) for row in planned]
    _print_balance("ours, compute budget", ours, config.row_length, cost)
    stream = np.random.default_rng(0).permutation(np.concatenate(planned)).tolist()
    laid_out = {record: layout(record) for record in set(stream)}
    elements = [_traced(laid_out[record]) for record in stream]
    for name, pack in grain_packers(list(elements[0]), config.row_length).items():
        _print_balance(name, [_content(row) for row in pack(_in_memory(elements))], config.row_length, cost)


class RowContent(NamedTuple):
    """What a packed row holds."""

    positions: int
    """Without padding."""
    pairs: int
    """Visible ones, of these positions."""
    cut_documents: int
    """Documents of which this row holds the end alone."""
    cut_pictures: int
    """Those whose cut goes through a picture."""


def _traced(document: sequence.Sequence) -> dict[str, np.ndarray]:
    """Arrays that tell, wherever they go, what their positions were in the document."""
    place = np.arange(len(document), dtype=np.int32)
    after_picture = np.append(0, document.num_scales[:-1])  # a cut before <eoi> leaves a picture without its end
    return {"place": place, "end": document.attend_end, "in_picture": after_picture}


def _content(row: dict[str, np.ndarray]) -> RowContent:
    """Of a row that one of grain's packers made of `_traced` documents: a piece sees nothing outside of it."""
    numbers, place, end = row["place_segment_ids"], row["place"], row["end"]
    used = int(np.count_nonzero(numbers))
    starts = np.flatnonzero(np.diff(numbers[:used], prepend=0))
    sizes = np.diff(np.append(starts, used))
    first, last = (np.repeat(place[at], sizes) for at in (starts, starts + sizes - 1))
    pairs = np.minimum(end[:used], last + 1) - first
    cut = place[starts] > 0
    return RowContent(used, int(pairs.sum()), int(cut.sum()), int((cut & (row["in_picture"][starts] > 0)).sum()))


def _print_balance(name: str, rows: Sequence[RowContent], row_length: int, cost: RowCost) -> None:
    rows = rows[: len(rows) // RANKS * RANKS]  # whole batches
    positions, pairs = (np.asarray([getattr(row, column) for row in rows]) for column in ("positions", "pairs"))
    costs = cost.flops(np.full(len(rows), row_length), pairs + row_length - positions)
    line = {
        "balance": name,
        "rows": len(rows),
        "padding": round(1 - float(positions.sum()) / (len(rows) * row_length), 4),
        "imbalance": round(float(imbalance(costs, RANKS, RANKS).mean()), 4),
        "cut_documents": sum(row.cut_documents for row in rows),
        "cut_pictures": sum(row.cut_pictures for row in rows),
    }
    print(json.dumps(line), flush=True)


def measure_speed(shards: ShardSet) -> None:
    """Prints documents a second that become batches of packed rows, in one thread: those of the plan's first window."""
    config, layout = dataclasses.replace(pipeline(shards, 0, 0), condition_dropout=0.0), Layout(shards)
    batches = range(config.window_batches)
    plan = make_plan(config, shards, "train", 0, SPEED_ROWS)
    stream = [record for n in batches for row in plan.batch(n) for record in row.records.tolist()]
    documents = {record: layout(record) for record in set(stream)}
    elements = [documents[record].arrays() for record in stream]

    def pack_ours() -> None:
        fresh = make_plan(config, shards, "train", 0, SPEED_ROWS)
        for n in batches:
            rows = [[documents[record] for record in row.records.tolist()] for row in fresh.batch(n)]
            packed = [sequence.pack_row(row, config.row_length, shards.manifest.vocabulary).arrays() for row in rows]
            _ = {name: np.stack([row[name] for row in packed]) for name in packed[0]}

    def load_ours() -> None:
        loader = make_batches(config, shards, "train", 0, SPEED_ROWS, 0, 0, 1)
        for _ in batches:
            next(loader)

    ways = {"ours, in memory": pack_ours, "ours, from shards": load_ours}
    read = grain.MapDataset.source(stream).map(lambda record: layout(record).arrays()).to_iter_dataset(_NO_THREADS)
    for name, pack in grain_packers(list(elements[0]), config.row_length).items():
        ways[f"{name}, in memory"] = lambda pack=pack: _drain(pack(_in_memory(elements)).batch(SPEED_ROWS))
        ways[f"{name}, from shards"] = lambda pack=pack: _drain(pack(read).batch(SPEED_ROWS))
    for name, seconds in _alternate(ways).items():
        print(json.dumps({"packed": name, "documents_per_s": round(len(stream) / seconds)}), flush=True)


def grain_packers(names: Sequence[str], row_length: int) -> dict[str, Packer]:
    """grain's packers by name."""
    lengths = dict.fromkeys(names, row_length)

    def first_fit(bins: int) -> Packer:
        return lambda elements: packers.FirstFitPackIterDataset(elements, length_struct=lengths, num_packing_bins=bins)

    return {
        f"grain, first fit of {SPEED_ROWS}": first_fit(SPEED_ROWS),
        f"grain, first fit of {RANKS}": first_fit(RANKS),
        "grain, concat then split": lambda elements: packers.ConcatThenSplitIterDataset(
            elements, length_struct=lengths
        ),
    }


def _alternate(ways: dict[str, Callable[[], None]]) -> dict[str, float]:
    """The median seconds of each, of `ROUNDS` in turns, after one that fills caches."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(ROUNDS + 1):
        for name, run in ways.items():
            begin = time.perf_counter()
            run()
            if round_number:
                seconds[name].append(time.perf_counter() - begin)
    return {name: float(np.median(found)) for name, found in seconds.items()}


class Layout:
    """Number of a document -> laid out."""

    def __init__(self, shards: ShardSet) -> None:
        self._source, self._manifest = shards.source("train"), shards.manifest
        self._config = pipeline(shards, 0, 0).sequence

    def __call__(self, record: int) -> sequence.Sequence:
        """The arrays of a document."""
        segments = to_segments(
            self._source[record], self._manifest.schedule_family, response_only=False, last_scale_context=False
        )
        return sequence.flatten(segments, self._manifest.vocabulary, self._config)


def _drain(items: Iterable[object]) -> None:
    collections.deque(items, maxlen=0)


def _in_memory(elements: Sequence[dict[str, np.ndarray]]) -> grain.IterDataset:
    return grain.MapDataset.source(elements).to_iter_dataset(_NO_THREADS)


def _tars(urls: list[str], buffer: int) -> webdataset.WebDataset:
    samples = webdataset.WebDataset(urls, shardshuffle=len(urls) if buffer else False)
    return samples.shuffle(buffer) if buffer else samples


def _members(document: EncodedDocument) -> dict[str, np.ndarray]:
    """File endings to arrays: ids of texts, targets and inputs of pictures."""
    members: dict[str, np.ndarray] = {}
    for number, segment in enumerate(document.segments):
        if isinstance(segment, EncodedText):
            members[f"{number}ids.npy"] = segment.ids
        else:
            members[f"{number}targets.npy"] = segment.targets.astype(np.uint16)
            members[f"{number}inputs.npy"] = segment.inputs.astype(np.uint16)
    return members


def _arrays(document: EncodedDocument) -> list[np.ndarray]:
    parts = [
        (each.ids,) if isinstance(each, EncodedText) else (each.targets, each.inputs) for each in document.segments
    ]
    return [array for part in parts for array in part]


def _checksum(documents: Iterable[list[np.ndarray]]) -> int:
    return sum(int(array.sum()) for document in documents for array in document)


if __name__ == "__main__":
    run_entry_point(main)

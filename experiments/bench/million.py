"""A million real documents through every stage of data: ingest, extraction, shards, an epoch of batches, inspection.

What it asks: how fast each stage is on two cores, how many bytes a document and a token take, and whether memory stays
flat from the first document to the last. Documents are OpenMoji's pictures under augmentations, with captions in
six wordings, edits, interleaved pages and texts, in Parquet, tar and JSON lines (experiments/bench/million_files.py);
ids and contents are checked against hashes that no code of the package made. Pictures have 16 pixels and the vision
tokenizer is the quickstart's smoke variant with 32 features: the real encoder at a real size would only make extraction
wait for it. So a document has 21 tokens, and its key, roles and framing weigh heavily in bytes a token;
experiments/bench/record_bytes.py has those of other sizes.

Every stage is a process of its own, the package's command where there is one, and prints a JSON line: documents a
second, CPU microseconds a document, memory of all its processes (`rss`, and `private`, which leaves mapped files out)
in the first and the last tenth of its time, the most, and `growth`, a fitted line over the whole time. A stage that is
done is not run again; one that was stopped goes on.

Command: `python -m experiments.bench.million --documents 1000000 --folder /tmp/million`
Cost: 25 CPU minutes, 2 GB of disk.
Result (two cores that other programs kept busy, so that seconds say little; jax 0.10.2, Python 3.11; one run, each
stage from its beginning to its end):

    stage     documents   CPU us a document   MiB of all processes (rss), first to last tenth, most   private
    ingest    1,010,000                 401   298 to 327, 342 (4 processes)                           157 to 186
    extract     992,593                 421   656 to 968, 978 (3 processes)                           343 to 573
    read      1,077,416                 129   387 to 402, 413 (1 process)                             190 to 207
    inspect     992,593                  87   264 to 331, 334 (1 process)                           137 to 137

Ingest kept exactly the 992,593 different contents and counted 17,407 exact duplicates. Shards take 188.8 bytes a
document, 9.06 a token, the index 74 bytes a document. Reading packs rows of 2048 that are 99.96% full, 7,365 documents
and 150,000 tokens a second (documents of 21 tokens: one of 512 level has 4,000); it went over every training and
validation document, each as often as any other or, in the last window, once more, and the keys of all records are one
of every content that was written. Inspection read every record and found none broken. With the cores to themselves two
workers ingest 4,972 documents a second and two processes extract 4,100 (stretches of an earlier run).

Extraction grows while it compiles and opens files and then is level (`growth` -16 MiB over the whole time). A loop that
only opens corpora file by file was seen to grow by 65 bytes a record, what readers of ArrayRecord files keep.
With 20,200 documents of 32 pixels, 30 codes each, shards took 219 bytes a document, 4.95 a token; variant "filtered"
(caption lengths, near duplicates at distance 4, labels cut at twice the median) kept 9,841 of them.

What it led to: an ingest that keeps splits as bytes and not as words of 40 bytes a document, near duplicates and an
inspection without a Python object a document, a corpus read 16 documents and decoded 16 pictures at a time.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from experiments.bench.million_files import SIDE, expected_documents, write_sources
from experiments.bench.tree_memory import read_samples, run_watched, summarise
from nextflow_jax.data.corpus.manifest import read_corpus_manifest
from nextflow_jax.data.manifest import read_manifest
from nextflow_jax.errors import UserError, run_entry_point

ROOT = pathlib.Path(__file__).parents[2]
QUICKSTART = ROOT / "experiments/openmoji/quickstart.py"
INGEST = ROOT / "experiments/data/million.py"
PROCESSES = 2


def main(arguments: Sequence[str]) -> None:
    """Runs the stages that are not done yet and prints a JSON object for each."""
    parser = argparse.ArgumentParser("python -m experiments.bench.million", description=__doc__)
    parser.add_argument("--documents", type=int, default=1_000_000, metavar="N", help="different ones (%(default)s)")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="that all is written to")
    parser.add_argument("--pictures", default="data/openmoji", help="root of OpenMoji (%(default)s)")
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two looks at memory (%(default)s)")
    parser.add_argument("--step", choices=["sources", "extract"], help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    folder = flags.folder.resolve()
    if flags.step == "sources":
        write_sources(folder / "sources", flags.documents, flags.pictures, workers=PROCESSES)
        return
    if flags.step == "extract":
        extract_together(folder)
        return
    (folder / "results").mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    for name in flags.stages:
        result = folder / "results" / f"{name}.json"
        if not result.is_file():
            line = run_stage(name, folder, flags)
            result.write_text(json.dumps(line) + "\n", encoding="utf-8")
        print(result.read_text(encoding="utf-8"), end="", flush=True)


def run_stage(name: str, folder: pathlib.Path, flags: argparse.Namespace) -> dict[str, Any]:
    """Runs one stage as a process of its own, in `folder`, and says what it cost and left.

    Raises:
      UserError: it failed.
    """
    make_command, describe = STAGES[name]
    command = [sys.executable, "-m", *make_command(flags)]
    log = folder / "logs" / f"{name}.txt"
    record = folder / "results" / f"{name}.samples"
    with open(log, "a", encoding="utf-8") as output:
        streams = {"stdout": output, "stderr": output}
        status = run_watched(command, flags.every, record, cwd=folder, env=environment(), **streams)
    if status:
        raise UserError(f"stage {name} ended with status {status}; see {log}")
    samples, found = read_samples(record), describe(folder, log)
    seconds, cpu, documents = samples[-1].seconds, samples[-1].cpu_seconds, found.get("documents", 0)
    speed = {"documents_per_s": round(documents / seconds), "cpu_us_a_document": round(1e6 * cpu / max(1, documents))}
    times = {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), **(speed if documents else {})}
    return {"stage": name, **times, **found, **summarise(samples)}


def extract_together(folder: pathlib.Path) -> None:
    """Runs extraction in several processes that share the shards' folder, as machines would.

    Raises:
      UserError: one of them failed.
    """
    config = ["--config", f"{QUICKSTART}:decoder,smoke", "--config.pictures.name=corpus"]
    config += ["--config.pictures.root=ingest", "--config.extraction.batch_size=512"]
    config += ["--config.extraction.ladder=(1,2)", f"--config.extraction.sizes=(({SIDE},{SIDE}),)"]
    model = folder / "shards/tokenizer/text_tokenizer.model"
    if model.is_file():  # of a run that was stopped: the same is not trained again
        config.append(f"--config.extraction.text.path={model}")
    command = [sys.executable, "-m", "nextflow_jax.extract", *config, "--tokenizer", "tokenizer", "--out", "shards"]
    parts = [[*command, "--process", str(number), "--processes", str(PROCESSES)] for number in range(PROCESSES)]
    started = [subprocess.Popen(part, cwd=folder) for part in parts]
    if sum(process.wait() != 0 for process in started):
        raise UserError("extraction failed; its messages are above")


def environment() -> dict[str, str]:
    """This process's, with the repository among the places that modules come from."""
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def describe_sources(folder: pathlib.Path, log: pathlib.Path) -> dict[str, Any]:
    """Documents, copies and bytes that were written."""
    del log
    written, different = expected_documents(folder / "sources")
    files = [path for path in (folder / "sources").iterdir() if path.suffix != ".npy"]
    return {"documents": written, "different": different, "files": len(files), **_bytes(files, written)}


def describe_corpus(folder: pathlib.Path, log: pathlib.Path) -> dict[str, Any]:
    """What the corpus holds; the exact one must hold every document of the sources once.

    Raises:
      UserError: it holds others.
    """
    corpus = folder / log.stem
    manifest = read_corpus_manifest(corpus)
    kept, read = sum(manifest.splits.values()), sum(manifest.read.values())
    written, different = expected_documents(folder / "sources")
    if read != written or (log.stem == "ingest" and kept != different):
        raise UserError(f"{corpus}: {read} read of {written}, {kept} kept of {different} different ones")
    parts = [corpus / part.file for part in manifest.parts]
    return {"documents": read, "kept": kept, "dropped": manifest.dropped, "files": len(parts), **_bytes(parts, read)}


def describe_shards(folder: pathlib.Path, log: pathlib.Path) -> dict[str, Any]:
    """What the shards hold, and the speed that extraction tells."""
    manifest = read_manifest(folder / "shards")
    shards = [shard for split in manifest.splits for shard in split.shards]
    records, tokens = sum(shard.records for shard in shards), sum(shard.tokens for shard in shards)
    size = sum(shard.bytes for shard in shards)
    index = sum(path.stat().st_size for path in (folder / "shards/index").iterdir())
    return {
        "documents": records,
        "tokens": tokens,
        "pictures": sum(split.pictures for split in manifest.splits),
        "files": len(shards),
        "bytes_a_document": round(size / records, 1),
        "bytes_a_token": round(size / tokens, 3),
        "index_bytes_a_document": round(index / records, 1),
        "says": _lines(log, "pictures encoded"),
    }


def describe_reading(folder: pathlib.Path, log: pathlib.Path) -> dict[str, Any]:
    """What the reading process printed."""
    del folder
    return json.loads(log.read_text(encoding="utf-8").splitlines()[-1])


def describe_inspection(folder: pathlib.Path, log: pathlib.Path) -> dict[str, Any]:
    """How many records were read and broken."""
    documents = sum(split.records for split in read_manifest(folder / "shards").splits)
    return {"documents": documents, "says": _lines(log, "broken")}


def _bytes(files: Sequence[pathlib.Path], documents: int) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in files)
    return {"mb": round(size / 1e6), "bytes_a_document": round(size / documents, 1)}


def _lines(log: pathlib.Path, words: str) -> list[str]:
    return [line for line in log.read_text(encoding="utf-8").splitlines() if words in line]


def _train(kind: str) -> Callable[[argparse.Namespace], list[str]]:
    def command(flags: argparse.Namespace) -> list[str]:
        config = ["--config", f"{QUICKSTART}:{kind},smoke", f"--config.pictures.root={_root(flags)}"]
        # The quickstart's 128 features would take most of the extraction's time.
        small = [f"--config.model.pixel.{name}=32" for name in ("encoder_base", "decoder_base", "latent")]
        teacher = ["--config.teacher=contrastive", *small] if kind == "tokenizer" else []
        return ["nextflow_jax.train", *config, *teacher, "--workdir", kind]

    return command


def _root(flags: argparse.Namespace) -> str:
    return str(pathlib.Path(flags.pictures).resolve())


def _sources(flags: argparse.Namespace) -> list[str]:
    size = ["--documents", str(flags.documents), "--pictures", _root(flags)]
    return ["experiments.bench.million", "--step", "sources", "--folder", ".", *size]


Stage = tuple[Callable[[argparse.Namespace], list[str]], Callable[[pathlib.Path, pathlib.Path], dict[str, Any]]]
"""The module and arguments of a stage's process, and what there is to say of what it left."""

STAGES: dict[str, Stage] = {
    "contrastive": (_train("contrastive"), lambda folder, log: {}),
    "tokenizer": (_train("tokenizer"), lambda folder, log: {}),
    "sources": (_sources, describe_sources),
    "ingest": (lambda flags: ["nextflow_jax.data.ingest", "--config", str(INGEST), "--out", "ingest"], describe_corpus),
    "extract": (
        lambda flags: ["experiments.bench.million", "--step", "extract", "--folder", "."],
        describe_shards,
    ),
    "read": (
        lambda flags: ["experiments.bench.million_read", "."],
        describe_reading,
    ),
    "inspect": (lambda flags: ["nextflow_jax.data.inspect", "shards"], describe_inspection),
    "filtered": (
        lambda flags: ["nextflow_jax.data.ingest", "--config", f"{INGEST}:filtered", "--out", "filtered"],
        describe_corpus,
    ),
}

if __name__ == "__main__":
    run_entry_point(main)

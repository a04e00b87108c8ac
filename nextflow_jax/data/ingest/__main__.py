"""`python -m nextflow_jax.data.ingest`: sources of any format become a corpus that extraction reads."""

import os
import sys
import time
from collections.abc import Sequence

from nextflow_jax import command
from nextflow_jax.config import from_config_dict, load_experiment
from nextflow_jax.data.corpus.manifest import CorpusManifest
from nextflow_jax.data.corpus.reasons import REASONS
from nextflow_jax.data.ingest.config import IngestConfig
from nextflow_jax.data.ingest.driver import Ingested, ingest
from nextflow_jax.errors import UserError, run_entry_point

DESCRIPTION = """\
Reads the sources of an ingest configuration, drops what its filters say, counting every document by reason, and writes
the rest to OUT as a corpus: ArrayRecord parts, selection.npz and corpus.json. Running the same command again continues
an interrupted ingest; a finished one is left as it is. Several machines that share OUT each take --process I
--processes N; the last one to be done finishes the corpus.

The configuration lists sources, each of one format (config.sources.0.format):
  jsonl       a document a line: {"image": path or URL, "text": ...}, or segments with roles and loss
  webdataset  tar archives: a.jpg and a.txt, a.caption or a.json
  parquet     pictures as bytes, paths or URLs; columns of img2dataset, LAION and OmniCorpus
  llava       conversations about pictures, as JSON or JSON Lines
  tfds        data sets that TFDS has built as ArrayRecord files
  video       folders or lists of frames, video files
Columns of any name are read: config.sources.0.columns="(('text', 'TEXT'), ('image', 'URL'))". All settings, with what
they mean, are in nextflow_jax/data/ingest/config.py and nextflow_jax/data/filters/config.py; each format's fields at
the head of its module in nextflow_jax/data/ingest/. For your own files, experiments/data/files.py has a variant of
each."""


def main(arguments: Sequence[str]) -> None:
    """Reads everything; see --help."""
    parser = command.command_parser(
        "data.ingest",
        DESCRIPTION,
        example="--config experiments/data/files.py:jsonl "
        "--config.sources.0.paths=\"('my/*.jsonl',)\" --out runs/corpus",
    )
    command.add_config_flag(parser)
    parser.add_argument(
        "--out", required=True, type=command.folder, metavar="DIR", help="the corpus' folder; made when it is not there"
    )
    parser.add_argument("--process", type=int, default=0, metavar="I", help="number of this machine (%(default)s)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="machines in all (%(default)s)")
    options, overrides = command.parse(parser, arguments)
    values = load_experiment(options.config, overrides)
    if values.get("kind") != "ingest":
        raise UserError(f"config.kind = {values.get('kind')!r}: --config {options.config} is no ingest configuration")
    start = time.perf_counter()
    ingested = ingest(
        from_config_dict(IngestConfig, values),
        options.out,
        process=options.process,
        processes=options.processes,
        progress=_show,
    )
    print(summarise(options.out, ingested, time.perf_counter() - start))


def summarise(out: str | os.PathLike, ingested: Ingested, seconds: float) -> str:
    """What is in the corpus and what was left out, or how much other machines still have to do."""
    manifest = ingested.manifest
    if manifest is None:
        return f"{out}: this machine's units are done; {ingested.waiting_for:,} parts of other machines are missing"
    read, size = sum(manifest.read.values()), sum(part.bytes for part in manifest.parts)
    done = "was finished already" if ingested.finished_before else f"finished in {seconds:,.1f} s"
    kept = ", ".join(f"{split} {count:,}" for split, count in manifest.splits.items() if count)
    lines = [f"{out}: {done}", f"documents: {read:,} read, kept: {kept or 'none'}; {size / 1e6:,.1f} MB"]
    return "\n".join(lines + _drops(manifest))


def _drops(manifest: CorpusManifest) -> list[str]:
    return [
        f"dropped: {count:,} of {'all sources' if source == '*' else source}: {reason} ({REASONS[reason]})"
        for source, reasons in manifest.dropped.items()
        for reason, count in reasons.items()
    ]


def _show(done: int, total: int, documents: int) -> None:
    print(f"ingest: {done:,} of {total:,} units, {documents:,} documents read", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_entry_point(main)

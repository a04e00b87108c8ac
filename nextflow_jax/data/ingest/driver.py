"""The ingest of all sources: units to parts by worker processes, then the selection over all of them.

Which documents a part holds follows from its unit alone. A run that goes on after a kill, with any number of workers
or of machines on one file system, writes the same bytes as one that was never stopped.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int8, UInt

from nextflow_jax import __version__
from nextflow_jax.config import preflight, to_plain_dict
from nextflow_jax.data.atomic_files import remove_partials
from nextflow_jax.data.claim import claim
from nextflow_jax.data.corpus import writer
from nextflow_jax.data.corpus.manifest import CorpusManifest, is_corpus, read_corpus_manifest
from nextflow_jax.data.corpus.raw import Drop, RawDocument
from nextflow_jax.data.corpus.reasons import BROKEN
from nextflow_jax.data.filters.columns import Fingerprint
from nextflow_jax.data.filters.fingerprints import fingerprint
from nextflow_jax.data.filters.hashes import hash64, mix
from nextflow_jax.data.filters.selection import select
from nextflow_jax.data.filters.steps import make_filters
from nextflow_jax.data.ingest.builder import key_of
from nextflow_jax.data.ingest.config import SPLITS, IngestConfig, SourceConfig
from nextflow_jax.data.ingest.formats import Unit, get_format
from nextflow_jax.data.ingest.remote import UnreadableFile, name_below
from nextflow_jax.errors import UserError

STATE_FILE = "ingest.json"

_LOG = logging.getLogger(__name__)
_NAMED_DROPS = 3
"""Dropped documents of a unit and reason that are named in the log."""
_NAMED_FILES = 3
"""Unreadable files that an error names."""

Progress = Callable[[int, int, int], None]
"""Called with (units done, units in all, documents read so far) after every unit."""


@dataclasses.dataclass(frozen=True)
class _Job:
    """A unit, and the part it becomes."""

    unit: Unit
    source: SourceConfig
    path: pathlib.Path


@dataclasses.dataclass(frozen=True)
class _Unreadable:
    """A unit that gave no part, and why."""

    job: _Job
    problem: str


@dataclasses.dataclass(frozen=True)
class Ingested:
    """What a run of `ingest` left."""

    manifest: CorpusManifest | None
    """None: other processes still have units to read."""
    finished_before: bool
    waiting_for: int
    """Parts of other processes that are not there yet."""


def ingest(
    config: IngestConfig,
    out: str | pathlib.Path,
    *,
    process: int = 0,
    processes: int = 1,
    progress: Progress = lambda done, total, documents: None,
) -> Ingested:
    """Reads all sources into the corpus `out`.

    Args:
      config: of the ingest.
      out: directory; one that a killed run left is continued.
      process: number of this machine; unit i is read by machine i % `processes`.
      processes: machines that share the directory. The one that finds all parts there finishes the corpus.
      progress: told after every unit.

    Raises:
      UserError: a broken rule, `out` holds something else or a corpus of other inputs, more files cannot be read than
        `max_unreadable_files`, or more of a source is broken than `max_broken_share`. Parts that are written stay.
    """
    preflight(config)
    if not 0 <= process < processes:
        raise UserError(f"--process {process} of --processes {processes}: processes are numbered from 0")
    out = pathlib.Path(out)
    units = [(unit, source) for source in config.sources for unit in get_format(source.format).units(source)]
    _refuse_equal_names(units)
    made_from = _describe_inputs(config, units)
    finished = claim(
        out, STATE_FILE, made_from, read_corpus_manifest(out).made_from if is_corpus(out) else None, "corpora"
    )
    paths = [out / writer.part_file(part, len(units)) for part in range(len(units))]
    if finished:
        writer.remove_index_parts(paths)
        remove_partials(out)
        (out / STATE_FILE).unlink(missing_ok=True)
        return Ingested(read_corpus_manifest(out), True, 0)
    jobs = [_Job(unit, source, path) for (unit, source), path in zip(units, paths)]
    _write_parts(config, jobs[process::processes], progress)
    missing = sum(not writer.is_written(path) for path in paths)
    if missing:
        return Ingested(None, False, missing)
    manifest = _finish(config, out, jobs, made_from)
    remove_partials(out)
    (out / STATE_FILE).unlink(missing_ok=True)
    return Ingested(manifest, False, 0)


def read_unit(
    unit: Unit, source: SourceConfig, config: IngestConfig
) -> Iterator[tuple[RawDocument, Fingerprint] | Drop]:
    """The documents of a unit after the filters on each alone, with their fingerprints.

    Raises:
      UnreadableFile: the file cannot be read at all, or not to its end.
    """
    if unit.size == 0:
        yield Drop(key_of(source, name_below(unit.path, source.paths)), "empty")
        return
    step = make_filters(config.filters)
    documents = get_format(source.format).read(unit, source)
    for document in itertools.islice(documents, source.documents_per_unit or None):
        if isinstance(document, RawDocument):
            document = step(document)
        if isinstance(document, RawDocument):
            found = fingerprint(document, config.filters)
            yield found if isinstance(found, Drop) else (document, found)
        else:
            yield document


def _write_parts(config: IngestConfig, jobs: Sequence[_Job], progress: Progress) -> None:
    """Writes the parts that are not there yet; units that cannot be read come last, once all others are safe."""
    documents = 0
    todo = [job for job in jobs if not writer.is_written(job.path)]
    unreadable: list[_Unreadable] = []
    workers = min(config.workers or os.cpu_count() or 1, len(todo))
    with _mapper(workers) as run:
        for number, done in enumerate(run(functools.partial(_try_part, config), todo), start=len(jobs) - len(todo) + 1):
            if isinstance(done, _Unreadable):
                unreadable.append(done)
            else:
                documents += done.read
            progress(number, len(jobs), documents)
    _refuse_unreadable(config, unreadable)
    for one in unreadable:
        _write_part(config, one.job, leave_out=True)


def _try_part(config: IngestConfig, job: _Job) -> writer.PartCounts | _Unreadable:
    try:
        return _write_part(config, job)
    except UnreadableFile as error:
        return _Unreadable(job, str(error))


def _write_part(config: IngestConfig, job: _Job, leave_out: bool = False) -> writer.PartCounts:
    documents = read_unit(job.unit, job.source, config)
    if leave_out:
        documents = _until_unreadable(documents, key_of(job.source, name_below(job.unit.path, job.source.paths)))
    return writer.write_part(job.path, job.source.name, _name_drops(documents, job.unit))


def _until_unreadable(
    documents: Iterator[tuple[RawDocument, Fingerprint] | Drop], key: str
) -> Iterator[tuple[RawDocument, Fingerprint] | Drop]:
    """The documents that can be read, and one that counts for the rest of the file."""
    try:
        yield from documents
    except UnreadableFile:
        yield Drop(key, "unreadable source")


def _refuse_unreadable(config: IngestConfig, unreadable: Sequence[_Unreadable]) -> None:
    if len(unreadable) > config.max_unreadable_files:
        some = "; ".join(one.problem for one in unreadable[:_NAMED_FILES])
        raise UserError(
            f"{len(unreadable):,} files cannot be read ({some}); config.max_unreadable_files allows "
            f"{config.max_unreadable_files:,}; raise it to leave them out and run the same command again, which reads "
            "nothing twice, or repair the files and ingest into another directory"
        )


def _name_drops(
    documents: Iterator[tuple[RawDocument, Fingerprint] | Drop], unit: Unit
) -> Iterator[tuple[RawDocument, Fingerprint] | Drop]:
    """Logs the first broken documents of a unit for every reason."""
    named: dict[str, int] = {}
    for document in documents:
        if isinstance(document, Drop) and document.reason in BROKEN:
            named[document.reason] = named.get(document.reason, 0) + 1
            if named[document.reason] <= _NAMED_DROPS:
                _LOG.warning("dropped %s of %s: %s", document.key, unit.path, BROKEN[document.reason])
        yield document


class _mapper:
    """`map` over worker processes, or in this one when there is one worker; results in order.

    Workers are spawned: a fork would copy the locks of whatever threads this process runs.
    """

    def __init__(self, workers: int) -> None:
        self._pool = None
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)

    def __enter__(self) -> Callable[..., Iterator[Any]]:
        return map if self._pool is None else self._run

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _run(self, work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        try:
            yield from self._pool.map(work, items)
        except BrokenProcessPool as error:
            fix = "run the same command again; if it happens again, use fewer workers"
            raise UserError(f"a worker process was killed, maybe for its memory; {fix}") from error


def _finish(config: IngestConfig, out: pathlib.Path, jobs: Sequence[_Job], made_from: dict[str, Any]) -> CorpusManifest:
    paths = [job.path for job in jobs]
    _refuse_broken(config, paths)
    columns = writer.load_columns(paths)
    selection = select(columns, config.filters, config.seed)
    own = np.repeat(
        np.asarray([SPLITS.index(job.source.split) for job in jobs], np.int8),
        [writer.read_counts(path).written for path in paths],
    )
    splits = _split(config, columns["key"], own, selection.kept)
    return writer.finish_corpus(out, paths, selection, splits, made_from)


def _refuse_broken(config: IngestConfig, paths: Sequence[pathlib.Path]) -> None:
    counts = [writer.read_counts(path) for path in paths]
    for source in config.sources:
        own = [one for one in counts if one.source == source.name]
        reasons = {reason: found for reason in BROKEN if (found := sum(one.dropped.get(reason, 0) for one in own))}
        broken, read = sum(reasons.values()), sum(one.read for one in own)
        if broken > config.max_broken_share * read:
            by_reason = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
            raise UserError(
                f"source {source.name}: {broken:,} of {read:,} documents are broken ({by_reason}); "
                f"config.max_broken_share allows {config.max_broken_share}; raise it and run the same command "
                "again, which reads nothing twice, or repair the files and ingest into another directory"
            )


def _split(
    config: IngestConfig,
    keys: UInt[np.ndarray, "n"],
    own: Int8[np.ndarray, "n"],
    kept: Bool[np.ndarray, "n"],
) -> dict[str, Int[np.ndarray, "_"]]:
    """Record numbers by split: the source's own (a number in SPLITS), or drawn by the hash of (seed, key)."""
    drawn = mix(keys, np.uint64(hash64("split", str(config.seed)))) / 2.0**64 < config.validation_share
    chosen = np.where(drawn, np.int8(SPLITS.index("validation")), np.int8(SPLITS.index("train")))
    number = np.where(own == SPLITS.index(""), chosen, own)
    return {split: np.flatnonzero(kept & (number == SPLITS.index(split))) for split in SPLITS if split}


def _refuse_equal_names(units: Sequence[tuple[Unit, SourceConfig]]) -> None:
    """Files of a source that keys could not tell apart."""
    paths: dict[tuple[str, str], str] = {}
    for unit, source in units:
        name = name_below(unit.path, source.paths)
        other = paths.setdefault((source.name, name), unit.path)
        if other != unit.path:
            fix = "name both by one pattern, such as folder/**/*.jsonl, or make them two sources"
            raise UserError(f"source {source.name}: {other} and {unit.path} would both be called {name!r}; {fix}")


def _describe_inputs(config: IngestConfig, units: Sequence[tuple[Unit, SourceConfig]]) -> dict[str, Any]:
    """All that the corpus depends on: not how many workers read it."""
    settings = to_plain_dict(config)
    for name in ("workers", "max_broken_share", "max_unreadable_files"):
        del settings[name]
    listed = json.dumps([[source.name, *dataclasses.astuple(unit)] for unit, source in units])
    return {
        "version": __version__,
        "config": settings,
        "units": len(units),
        "files": hashlib.sha256(listed.encode()).hexdigest(),
    }

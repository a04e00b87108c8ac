"""The pipeline: planned rows are read, laid out and stacked ahead of time, in threads or worker processes."""

import dataclasses
import logging
import sys
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from nextflow_jax import sequence
from nextflow_jax.config import Fault, choose, nearest
from nextflow_jax.data.broken_records import BrokenRecords, BuiltBatch
from nextflow_jax.data.costs import DEFAULT_COST, RowCost, estimated_pairs
from nextflow_jax.data.mixture import Mixture, MixtureConfig, resolve_mixture
from nextflow_jax.data.packing import STRATEGIES
from nextflow_jax.data.plan import DocumentTable, Phase, Plan, PlanConfig, RowPlan
from nextflow_jax.data.plan_file import PlanFile, PlannedRows, plan_settings
from nextflow_jax.data.records import BrokenRecord
from nextflow_jax.data.segments import INVERTIBLE, check_indices, condition_pairs, invert, to_segments
from nextflow_jax.data.shards import DocumentIndex, ShardSet
from nextflow_jax.data.tally import Grouping
from nextflow_jax.data.workers import start_worker
from nextflow_jax.errors import UserError
from nextflow_jax.scales import ScheduleFamily
from nextflow_jax.sequence import SequenceConfig
from nextflow_jax.vocabulary import Vocabulary

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """From shards to the batches of the decoder."""

    shards: str = ""
    """Directory that `extract --out` wrote; several, comma-separated, are read as one set."""
    verify: str = "size"
    """"size" compares file sizes with the manifest at the start, "full" checksums too (reads everything once)."""
    row_length: int = 512
    """S, positions of a row."""
    packing: str = "fixed_length"
    """How documents share rows; one of packing.STRATEGIES."""
    ranks: int = 0
    """Groups of a batch's rows, equally many each, that wait for one another: the devices that share a batch, without
    those that share a row. Packing by compute budget balances them; 0: every row is one."""
    plan_file: str = ""
    """File of `nextflow_jax.plan_rows` whose rows are read: the ones that are planned without it. What they realise,
    that command says; it is not logged in training."""
    window_batches: int = 16
    """Global batches planned at once: more pack better and shuffle wider, fewer start sooner."""
    mixture: MixtureConfig = MixtureConfig()
    condition_dropout: float = 0.1
    """Share of documents that generate pictures without their prompt text, for classifier-free guidance."""
    task_inversion: float = 0.0
    """Share of text-to-image documents that become captioning: the picture is the prompt, the words the response."""
    task_inversion_from: int = 0
    """The global batch from which on they do."""
    response_only: bool = False
    """Loss on responses only (supervised fine-tuning)."""
    last_scale_context: bool = False
    """Prompt pictures feed one more block with the codes of their last scale."""
    sequence: SequenceConfig = SequenceConfig()
    drop_too_long: bool = False
    """Leave out documents longer than a row, counting them; otherwise they are an error."""
    max_broken_fraction: float = 0.001
    """Share of a split's records that may be unreadable; each is tried again, then skipped, counted over all threads
    and workers, and logged."""
    reader_threads: int = 2
    """Threads that build batches in this process or in each worker process; 0 builds them when asked."""
    prefetch_batches: int = 4
    """Batches built ahead."""
    workers: int = 0
    """Worker processes, which hand their batches over in shared memory (/dev/shm must hold 3 of each worker's);
    0 uses threads alone, which do where laying out rows is what takes the time."""

    def faults(self) -> Iterator[Fault]:
        """The rules this configuration breaks."""
        least_values = {"row_length": 8, "window_batches": 1, "ranks": 0, "reader_threads": 0, "workers": 0}
        for name, least in least_values.items():
            if getattr(self, name) < least:
                yield Fault(name, getattr(self, name), f"must be at least {least}", f"use {least} or more")
        for name in ("condition_dropout", "task_inversion", "max_broken_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                yield Fault(name, getattr(self, name), "is a share", "use a number from 0 to 1")
        phases = {"mixture.changes": [batch for batch, _ in self.mixture.changes]}
        for name, batches in (phases | {"task_inversion_from": [self.task_inversion_from]}).items():
            for batch in batches:
                yield from _phase_faults(name, batch, self.window_batches)
        if self.packing not in STRATEGIES:
            yield Fault("packing", self.packing, "is no packing strategy", nearest(self.packing, list(STRATEGIES)))
        if self.prefetch_batches < self.reader_threads:
            yield Fault("prefetch_batches", self.prefetch_batches, "must be at least reader_threads", "raise it")


def _phase_faults(name: str, batch: int, window: int) -> Iterator[Fault]:
    if batch < 0 or (window > 0 and batch % window):
        below = max(0, batch // max(1, window) * window)
        rule = f"a phase must begin with a window: at a multiple of window_batches = {window}"
        yield Fault(name, batch, rule, f"use {below} or {below + window}")


def make_plan(
    config: PipelineConfig, shards: ShardSet, split: str, seed: int, batch_size: int, cost: RowCost = DEFAULT_COST
) -> Plan:
    """The plan of a split: what each global batch holds, and its statistics.

    Args:
      config: of the pipeline.
      shards: opened.
      split: "train", "validation" or "heldout".
      seed: of the experiment.
      batch_size: rows of a global batch.
      cost: of rows, by which packing by compute budget balances them.

    Raises:
      UserError: documents longer than a row while drop_too_long is off, a mixture that the shards cannot give (see
        `resolve_mixture`), rows that do not divide over the ranks, or an index with numbers that no document has.
    """
    if config.ranks and batch_size % config.ranks:
        raise UserError(
            f"global batch of {batch_size} rows does not divide over config.pipeline.ranks = {config.ranks}; use "
            f"{-(-batch_size // config.ranks) * config.ranks} rows, or another number of ranks"
        )
    index = shards.index(split)
    _refuse_damaged(index, shards)
    length = index.plain + (index.context if config.last_scale_context else 0)
    inverted_length = _inverted_lengths(config, shards, index)
    longest = np.maximum(length, inverted_length)
    usable = longest <= config.row_length
    if not usable.all():
        _report_too_long(config, index, longest)
    pairs, inverted_pairs = _pairs(config, index, length, inverted_length)
    saved = condition_pairs(length, index.condition)
    mixture = resolve_mixture(config.mixture, index, usable)
    table = DocumentTable(
        length,
        index.condition,
        index.task,
        index.tasks,
        inverted_length,
        pairs,
        saved,
        inverted_pairs,
        Grouping(index.source, tuple(f"@{source}" for source in index.sources)),
        Grouping(mixture.pool_of, tuple(pool.name for pool in mixture.pools)),
    )
    first, *phases = _phases(config, mixture, table)
    plan_config = PlanConfig(
        seed,
        batch_size,
        config.window_batches,
        config.row_length,
        config.condition_dropout,
        first.task_inversion,
        config.ranks,
        cost,
    )
    strategy = choose("config.pipeline.packing", config.packing, STRATEGIES)
    return Plan(plan_config, mixture.stream(first.weights, seed), table, strategy, phases)


def make_batches(
    config: PipelineConfig,
    shards: ShardSet,
    split: str,
    seed: int,
    global_batch_size: int,
    start_batch: int,
    process_index: int,
    process_count: int,
    *,
    accumulate: sequence.Accumulate | None = None,
    vocabulary: Vocabulary | None = None,
    cost: RowCost = DEFAULT_COST,
    plan: Plan | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of global batches `start_batch`, `start_batch` + 1, ..., without end.

    Args:
      config: of the pipeline.
      shards: opened.
      split: "train", "validation" or "heldout".
      seed: of the experiment; with the batch's number it decides everything.
      global_batch_size: rows of a batch over all processes.
      start_batch: number of the first batch, 0 in a new run.
      process_index: which part of every batch to return.
      process_count: how many equal parts there are; any number gives the same global batches.
      accumulate: makes accumulated features, when config.sequence.inputs asks for them.
      vocabulary: of the model, when it has more text ids than the shards' tokenizer.
      cost: of rows, see `make_plan`.
      plan: what `make_plan` makes of the same arguments, where it is there already.

    Returns:
      An iterator over the arrays of `sequence.Sequence` by name, each [rows, S, ...]. It is a grain DatasetIterator.

    Raises:
      UserError: at once for what `make_plan` or `PlanFile` refuses or a batch that does not divide; while iterating
        when more than max_broken_fraction of the records are unreadable, or for a batch that plan_file does not hold.
    """
    if global_batch_size % process_count:
        raise UserError(
            f"global batch of {global_batch_size} rows does not divide over {process_count} processes; "
            f"use {-(-global_batch_size // process_count) * process_count}"
        )
    planned: PlannedRows
    if config.plan_file:
        settings = plan_settings(config, shards, split, seed, global_batch_size, cost)
        planned = PlanFile(config.plan_file, settings)
    else:
        planned = plan = plan or make_plan(config, shards, split, seed, global_batch_size, cost)
        if process_index == 0:
            _LOG.info("%s from batch %d: %s", split, start_batch, _describe(plan.statistics(start_batch)))
    rows = global_batch_size // process_count
    mine = slice(process_index * rows, (process_index + 1) * rows)
    builder = RowBuilder(config, shards, split, accumulate, vocabulary)
    dataset = grain.MapDataset.range(start_batch, sys.maxsize).map(BatchBuilder(planned, mine, builder))
    batches = dataset.to_iter_dataset(grain.ReadOptions(config.reader_threads, config.prefetch_batches))
    if config.workers:
        flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags, which our commands do not use
        processes = grain.MultiprocessingOptions(config.workers, per_worker_buffer_size=2)
        batches = batches.mp_prefetch(processes, worker_init_fn=start_worker)
    return iter(batches.map(BrokenRecords(shards.index(split), config.max_broken_fraction).count))


@dataclasses.dataclass(frozen=True)
class BatchBuilder:
    """Number of a batch -> this process's rows of it, stacked."""

    plan: PlannedRows
    rows: slice
    build_row: "RowBuilder"

    def __call__(self, n: int) -> BuiltBatch:
        """Arrays [rows, S, ...] by name, and the records that could not be read."""
        rows = [self.build_row(row) for row in self.plan.batch(n)[self.rows]]
        arrays = [row.sequence.arrays() for row in rows]
        broken = {record: reason for row in rows for record, reason in row.broken.items()}
        return {"arrays": {name: np.stack([row[name] for row in arrays]) for name in arrays[0]}, "broken": broken}


class BuiltRow(NamedTuple):
    """A row, and the numbers of the records that are missing from it, each with the reason."""

    sequence: sequence.Sequence
    broken: dict[int, str]


class RowBuilder:
    """Reads the documents of a planned row and lays them out."""

    def __init__(
        self,
        config: PipelineConfig,
        shards: ShardSet,
        split: str,
        accumulate: sequence.Accumulate | None,
        vocabulary: Vocabulary | None = None,
    ):
        self._config = config
        self._source = shards.source(split)
        self._family = shards.manifest.schedule_family
        self._vocabulary = vocabulary or shards.manifest.vocabulary
        self._accumulate = accumulate
        self._known_broken: dict[int, str] = {}
        self._nothing = _no_positions(config.sequence, self._family, self._vocabulary, accumulate)

    def __call__(self, row: RowPlan) -> BuiltRow:
        """The row; unreadable documents leave padding."""
        parts, broken = [], {}
        columns = (row.records, row.dropped, row.inverted, row.lengths)
        for record, dropped, inverted, length in zip(*(column.tolist() for column in columns)):
            try:
                part = self._document(record, dropped, inverted)
                if len(part) != length:
                    raise BrokenRecord(f"it has {len(part)} positions, the index, maybe of other shards, says {length}")
                parts.append(part)
            except BrokenRecord as error:
                broken[record] = self._known_broken[record] = str(error)
        packed = sequence.pack_row([*parts, self._nothing], self._config.row_length, self._vocabulary)
        return BuiltRow(packed, broken)

    def _document(self, record: int, dropped: bool, inverted: bool) -> sequence.Sequence:
        if record in self._known_broken:  # not tried again and again, which takes time
            raise BrokenRecord(self._known_broken[record])
        config = self._config
        document = invert(self._source[record]) if inverted else self._source[record]
        check_indices(document, self._vocabulary)
        segments = to_segments(
            document, self._family, response_only=config.response_only, last_scale_context=config.last_scale_context
        )
        if dropped:
            segments = sequence.drop_condition(segments)
        return sequence.flatten(segments, self._vocabulary, config.sequence, accumulate=self._accumulate)


def _no_positions(
    config: SequenceConfig,
    family: ScheduleFamily,
    vocabulary: Vocabulary,
    accumulate: sequence.Accumulate | None,
) -> sequence.Sequence:
    """A document without positions: it gives a row of any content, or none, all the arrays that the model reads."""
    empty = sequence.TextSegment(np.empty(0, np.int32))
    nothing = sequence.flatten([empty], vocabulary, config, bos=False, eos=False, accumulate=accumulate)
    if accumulate is None:
        return nothing
    schedule = family.schedule(family.sizes[0])
    features = accumulate(schedule, np.zeros(schedule.num_tokens, np.int32))
    return dataclasses.replace(nothing, vision_features=np.zeros((0, features[-1].shape[-1]), np.float32))


def _inverted_lengths(config: PipelineConfig, shards: ShardSet, index: DocumentIndex) -> Int[np.ndarray, "records"]:
    """Positions of every document when it is turned around; 0 where the configuration or its task does not do that."""
    if not config.task_inversion or INVERTIBLE not in index.tasks:
        return np.zeros(len(index), np.int32)
    if config.last_scale_context and index.inverted_context is None:
        raise UserError(
            f"{shards.directory} was extracted by a version without task inversion and lacks lengths that it needs "
            "with last_scale_context; extract it again, or set config.pipeline.task_inversion to 0.0"
        )
    length = index.plain + (index.inverted_context if config.last_scale_context else 0)
    return np.where(index.task == index.tasks.index(INVERTIBLE), length, 0)


def _phases(config: PipelineConfig, mixture: Mixture, table: DocumentTable) -> list[Phase]:
    """The phases of a run: with the mixture's weights change the expected lengths, and with inversion these alone."""
    phases = []
    for batch in sorted({0, config.task_inversion_from, *(batch for batch, _ in config.mixture.changes)}):
        inversion = config.task_inversion if batch >= config.task_inversion_from else 0.0
        lengths = table.expected_lengths(config.condition_dropout, inversion)
        phases.append(Phase(batch, mixture.document_weights(batch, lengths), inversion))
    return phases


def _pairs(
    config: PipelineConfig,
    index: DocumentIndex,
    length: Int[np.ndarray, "records"],
    inverted_length: Int[np.ndarray, "records"],
) -> tuple[Int[np.ndarray, "records"], Int[np.ndarray, "records"]]:
    """Visible pairs of every document, and of it turned around."""
    if index.pairs is None or index.context_pairs is None or index.inverted_context_pairs is None:
        return estimated_pairs(length), estimated_pairs(inverted_length)
    if not config.last_scale_context:
        return index.pairs, index.pairs
    return index.pairs + index.context_pairs, index.pairs + index.inverted_context_pairs


def _refuse_damaged(index: DocumentIndex, shards: ShardSet) -> None:
    """An index of which a number is none that extraction writes."""
    bounds = {"plain": (1, None), "task": (0, len(index.tasks)), "source": (0, len(index.sources))}
    for name, column in index.columns().items():
        least, end = bounds.get(name, (0, None))
        if len(column) and (column.min() < least or (end is not None and column.max() >= end)):
            raise UserError(
                f"the index of {', '.join(map(str, shards.directories))} is damaged: its column {name!r} has values "
                f"from {column.min()} to {column.max()}; copy it from the original or extract again"
            )


def _report_too_long(config: PipelineConfig, index: DocumentIndex, length: Int[np.ndarray, "records"]) -> None:
    """Logs the documents that are dropped, or refuses them."""
    count, longest = int(np.count_nonzero(length > config.row_length)), int(length.argmax())
    found = (
        f"{count} of {len(index)} documents are longer than config.pipeline.row_length = {config.row_length}; "
        f"the longest, {index.key(longest)}, has {length[longest]} positions"
    )
    if not config.drop_too_long:
        raise UserError(f"{found}; set row_length to {length[longest]}, or drop_too_long to leave them out")
    _LOG.warning("%s; they are left out", found)


def _describe(statistics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in statistics.items())

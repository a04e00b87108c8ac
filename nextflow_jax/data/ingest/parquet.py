"""Parquet: a row is a document, units are row groups, only the columns that are needed are read.

The columns are the fields of ingest/fields.py; `SourceConfig.columns` says what a file calls them. A picture is

- the bytes of a file (`binary`),
- a struct `{bytes, path}`, as Hugging Face's `datasets` writes it: the bytes, or where they are null the path,
- or a path below `SourceConfig.image_root` (the file's folder when empty), or a URL of `SourceConfig.url_schemes`.

Some well-known files:

- img2dataset's (`output_format=parquet`): columns=(("id", "key"), ("text", "caption"), ("image", "jpg")). Rows that it
  could not download have no picture and are dropped as "missing file".
- LAION's lists of URLs: columns=(("text", "TEXT"), ("image", "URL"), ("licence", "LICENSE")). Most of those pictures
  are gone and each costs a request; to download them with img2dataset first is the better way.
- OmniCorpus and others of interleaved documents: `texts` and `images`, two lists of one length, each place of which is
  null in one of them. No renaming is needed.
- Conversations as in LLaVA: `conversations`, a list of structs `{from, value}`, with `image` or `images`.

Rows without an id are known by their number in the file.
"""

import concurrent.futures
import contextlib
import functools
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

from nextflow_jax.data.corpus.raw import Drop, RawDocument, RefusedDocument
from nextflow_jax.data.ingest.builder import build, key_of, read_named
from nextflow_jax.data.ingest.config import FIELDS, SourceConfig
from nextflow_jax.data.ingest.fields import assemble, optional, pictures_of
from nextflow_jax.data.ingest.formats import Unit
from nextflow_jax.data.ingest.remote import UnreadableFile, list_files, name_below, open_file
from nextflow_jax.errors import UserError

_FULL_FORM = ("segments", "task")
_LISTS = ("conversations", "texts")
_BATCH_BYTES = 16_000_000
"""Of the rows that are decoded at a time, as far as the file's own statistics tell."""
_MOST_ROWS = 1024
_BUFFER_BYTES = 1 << 20
_FOOTERS_AT_ONCE = 16


def units(config: SourceConfig) -> list[Unit]:
    """See formats.Format; of files larger than `unit_bytes` the footer is read."""
    with concurrent.futures.ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        found = pool.map(functools.partial(_file_units, config), list_files(config.paths))
        return [unit for some in found for unit in some]


def read(unit: Unit, config: SourceConfig) -> Iterator[RawDocument | Drop]:
    """See formats.Format; rows of a row group that cannot be decoded are dropped one by one."""
    with _opened(unit.path) as file:
        columns = _columns(file.schema_arrow.names, unit, config)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        groups = range(unit.start, unit.stop if unit.stop >= 0 else len(sizes))
        for group in groups:
            yield from _read_group(file, group, sum(sizes[:group]), columns, unit, config)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    """The file as a pyarrow.parquet.ParquetFile."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        needs = "Parquet needs pyarrow, which is not installed"
        raise UserError(f"{path}: {needs}; pip install 'nextflow_jax[parquet]'") from error
    with contextlib.ExitStack() as stack:
        try:
            # Without pre-buffering and with a buffer, columns are read page by page, not a row group at a time.
            source = stack.enter_context(open_file(path))
            options = {"buffer_size": _BUFFER_BYTES, "pre_buffer": False, "page_checksum_verification": True}
            file = stack.enter_context(parquet.ParquetFile(source, **options))
        except (_arrow_error(), OSError) as error:
            raise UnreadableFile(f"{path} is no readable Parquet file ({error})") from error
        yield file


def _arrow_error() -> type[Exception]:
    return importlib.import_module("pyarrow").ArrowException


def _file_units(config: SourceConfig, file: tuple[str, int]) -> list[Unit]:
    path, size = file
    if 0 <= size <= config.unit_bytes:
        return [Unit(path, size)]
    try:
        with _opened(path) as parquet:
            sizes = [parquet.metadata.row_group(group).total_byte_size for group in range(parquet.num_row_groups)]
    except UnreadableFile:
        return [Unit(path, size)]  # whoever reads it says so
    starts, held = [0], 0
    for group, bytes_ in enumerate(sizes):
        if held and held + bytes_ / 2 > config.unit_bytes:
            starts.append(group)
            held = 0
        held += bytes_
    return [Unit(path, size, start, stop) for start, stop in zip(starts, [*starts[1:], len(sizes)])]


def _columns(names: Sequence[str], unit: Unit, config: SourceConfig) -> list[str]:
    """The columns to read: those of fields, as far as the file has them.

    Raises:
      UserError: the file lacks one that is asked for, or has no form of ingest/fields.py.
    """
    renamed = {field: column for field, column in config.columns if column not in names}
    fields = {field: config.column(field) for field in FIELDS if config.column(field) in names}
    columns = [*fields.values(), *(name for name in _FULL_FORM if name in names)]
    if "segments" in columns or "conversations" in fields or "texts" in fields:
        needed = {}
    elif config.task == "text":
        needed = {"text": "text"}
        columns = [name for name in columns if name not in (config.column("image"), config.column("images"))]
    else:
        picture = "images" if "images" in fields else "image"
        needed = {"text": "text", picture: picture}
    missing = renamed | {field: config.column(field) for field in needed if field not in fields}
    if missing:
        wanted = ", ".join(f"{column!r} for {field}" for field, column in sorted(missing.items()))
        fix = "set `columns` of the source to (field, column) pairs"
        raise UserError(f"{unit.path} has no column {wanted}; it has {', '.join(map(repr, names))}; {fix}")
    return columns


def _read_group(
    file: Any, group: int, first: int, columns: Sequence[str], unit: Unit, config: SourceConfig
) -> Iterator[RawDocument | Drop]:
    """The rows of a row group; `first` is the number of its first row in the file."""
    statistics = file.metadata.row_group(group)
    rows = max(1, min(_MOST_ROWS, _BATCH_BYTES * statistics.num_rows // max(1, statistics.total_byte_size)))
    row = first
    name = name_below(unit.path, config.paths)
    batches = file.iter_batches(batch_size=rows, row_groups=[group], columns=list(columns), use_threads=False)
    while row < first + statistics.num_rows:
        try:
            batch = next(batches)
        except (StopIteration, _arrow_error(), OSError):
            for lost in range(row, first + statistics.num_rows):
                yield Drop(key_of(config, name, lost), "unreadable source")
            return
        for at in range(batch.num_rows):
            yield _document(batch, at, key_of(config, name, row + at), unit, config)
        row += batch.num_rows


def _document(batch: Any, at: int, by_place: str, unit: Unit, config: SourceConfig) -> RawDocument | Drop:
    try:
        fields = {name: batch.column(name)[at].as_py() for name in batch.schema.names}
        own = optional(fields, config.column("id"))
    except UnicodeDecodeError:  # pyarrow checks strings no sooner
        return Drop(by_place, "not utf-8")
    except RefusedDocument as refused:
        return Drop(by_place, refused.reason)
    key = key_of(config, own) if own else by_place

    def make() -> RawDocument:
        has_form = any(fields.get(name) is not None for name in ("segments", *map(config.column, _LISTS)))
        if not has_form and config.task != "text" and not pictures_of(fields, config):
            raise RefusedDocument("missing file")
        return assemble(key, fields, config, functools.partial(_read_image, unit=unit, config=config))

    return build(key, make)


def _read_image(value: Any, unit: Unit, config: SourceConfig) -> bytes:
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if value is None:
        raise RefusedDocument("missing file")
    if isinstance(value, bytes):
        return value
    return read_named(value, unit, config)

"""JSON Lines: one document a line, pictures by path or URL. Files ending in .gz are decompressed.

Short form, one picture and a text, of the source's task (`SourceConfig.task`); a line with a text alone is of the task
"text". Field names may be changed with `SourceConfig.columns`:

    {"image": "cats/1.jpg", "text": "a cat", "id": "1", "label": "cat", "licence": "CC BY 4.0"}
    {"text": "words without a picture"}

Full form, any document of data/documents.py; `loss` may be left out:

    {"id": "7", "task": "edit", "licence": "CC0", "label": "", "source": "shop",
     "segments": [{"image": "7/before.png", "role": "prompt"},
                  {"text": "make it red", "role": "prompt"},
                  {"image": "7/after.png", "role": "response", "loss": true}]}

Other forms, interleaved texts and conversations among them, are in ingest/fields.py. Paths are relative to
`SourceConfig.image_root`, or to the file's folder. A line without an id is known by its place in the file.
"""

import functools
from collections.abc import Iterator
from typing import Any

from nextflow_jax.data.corpus.raw import Drop, RawDocument, RefusedDocument
from nextflow_jax.data.ingest.builder import build, key_of, read_named
from nextflow_jax.data.ingest.config import SourceConfig
from nextflow_jax.data.ingest.fields import assemble, optional, parse_object
from nextflow_jax.data.ingest.formats import Unit
from nextflow_jax.data.ingest.lines import line_units, read_lines
from nextflow_jax.data.ingest.remote import name_below


def units(config: SourceConfig) -> list[Unit]:
    """See formats.Format."""
    return line_units(config)


def read(unit: Unit, config: SourceConfig) -> Iterator[RawDocument | Drop]:
    """See formats.Format."""
    for offset, line in read_lines(unit, config.max_bytes):
        by_place = key_of(config, name_below(unit.path, config.paths), offset)
        try:
            if line is None:
                raise RefusedDocument("too many bytes")
            fields = parse_object(line)
            own = optional(fields, config.column("id"))
        except RefusedDocument as refused:
            yield Drop(by_place, refused.reason)
            continue
        key = key_of(config, own) if own else by_place
        yield build(key, functools.partial(_document, key, fields, unit, config))


def _document(key: str, fields: dict[str, Any], unit: Unit, config: SourceConfig) -> RawDocument:
    return assemble(key, fields, config, functools.partial(read_named, unit=unit, config=config))

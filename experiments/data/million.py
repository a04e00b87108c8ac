"""Ingest of the files that experiments/bench/million.py writes: three formats, five tasks, exact duplicates dropped.

Reproduces: nothing of the paper; it is the ingest of a benchmark, which runs it in the folder of those files.
Command: `python -m experiments.bench.million`
Variants: exact (the default), filtered (also near duplicates, caption lengths, and labels cut at a cap).
Cost: minutes.
Result: see experiments/bench/million.py.
"""

from nextflow_jax.config import read_variant, to_config_dict
from nextflow_jax.data.filters.config import BalanceConfig, DuplicatesConfig, FiltersConfig, TextFilter
from nextflow_jax.data.ingest.config import IngestConfig, SourceConfig

VARIANTS = ("filtered", "exact")

_SOURCES = (
    ("pairs", "parquet", "text_to_image"),
    ("captions", "parquet", "image_to_text"),
    ("text", "jsonl", "text"),
    ("edits", "webdataset", "edit"),
    ("interleaved", "parquet", "interleaved"),
)
_FILTERED = FiltersConfig(
    texts=TextFilter(min_characters=8, max_characters=60),
    duplicates=DuplicatesConfig(near_distance=4),
    balance=BalanceConfig(max_times_median=2.0),
)
_ENDINGS = {"parquet": "parquet", "jsonl": "jsonl", "webdataset": "tar"}


def get_config(variant: str = ""):
    """The ingest of all five kinds of files below the working directory."""
    kind, _ = read_variant(variant, VARIANTS, switches=())
    sources = tuple(
        SourceConfig(name, format_, (f"sources/{name}-*.{_ENDINGS[format_]}",), task, "CC BY-SA 4.0")
        for name, format_, task in _SOURCES
    )
    filters = _FILTERED if kind == "filtered" else FiltersConfig()
    return to_config_dict(IngestConfig(sources=sources, filters=filters, workers=2))

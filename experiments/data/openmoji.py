"""Ingest of OpenMoji from files of every format: the way of a team's own data, at a size that takes seconds.

Reproduces: nothing of the paper; it is the worked example of README, "Your own data".
Command:

    python -m experiments.data.openmoji_files --out data/openmoji_files
    python -m nextflow_jax.data.ingest --config experiments/data/openmoji.py:jsonl --out runs/corpus

    then --config.pictures.name=corpus --config.pictures.root=runs/corpus for nextflow_jax.extract.
Variants: jsonl (pairs and edits), webdataset, parquet, llava (conversations).
Cost: seconds.
Result: see README.
"""

from nextflow_jax.config import read_variant, to_config_dict
from nextflow_jax.data.filters.config import BalanceConfig, FiltersConfig, TextFilter
from nextflow_jax.data.ingest.config import IngestConfig, SourceConfig

VARIANTS = ("webdataset", "parquet", "llava", "jsonl")

_FOLDER = "data/openmoji_files"
_LICENCE = "CC BY-SA 4.0"


def get_config(variant: str = ""):
    """The ingest of one format."""
    kind, _ = read_variant(variant, VARIANTS, switches=())
    filters = FiltersConfig(
        texts=TextFilter(min_characters=2, max_characters=500),
        balance=BalanceConfig(max_times_median=20.0),
    )
    return to_config_dict(IngestConfig(sources=_sources(kind), filters=filters, validation_share=0.1))


def _sources(kind: str) -> tuple[SourceConfig, ...]:
    if kind == "jsonl":
        return tuple(
            SourceConfig(name=name, format="jsonl", paths=(f"{_FOLDER}/{name}.jsonl",), licence=_LICENCE)
            for name in ("pairs", "edits")
        )
    paths = {"webdataset": "web-*.tar", "parquet": "pairs.parquet", "llava": "conversations.json"}
    columns = {"parquet": (("id", "key"), ("text", "caption"))}.get(kind, ())
    return (SourceConfig(kind, kind, (f"{_FOLDER}/{paths[kind]}",), licence=_LICENCE, columns=columns),)

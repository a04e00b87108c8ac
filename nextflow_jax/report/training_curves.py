"""The section of training curves: which metrics of each training run are drawn together."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nextflow_jax.report import page
from nextflow_jax.report.curves import Series, curves
from nextflow_jax.training.metrics import METRICS_FILE, read_metrics

RUNS = {"contrastive": "Teacher: image-text dual encoder", "tokenizer": "Vision tokenizer", "decoder": "Decoder"}
"""Sub-folder of the run -> heading."""

DRAWINGS: tuple[tuple[str, str, bool], ...] = (
    (r"loss", "total loss", True),
    (r"loss/(?!total).+", "loss terms", True),
    (r"cross_entropy/(text|vision)", "cross-entropy: text and vision", True),
    (r"cross_entropy/scale_\d+", "cross-entropy of each scale", True),
    (r"accuracy/(text|vision)", "accuracy: text and vision", False),
    (r"accuracy/scale_\d+", "accuracy of each scale", False),
    (r"retrieval/.+", "retrieval@1 within the batch", False),
    (r"psnr", "PSNR of training batches (dB)", False),
    (r"codebook/usage/.+", "codebook usage", False),
    (r"codebook/perplexity/.+", "codebook perplexity", True),
)
"""(metrics by regular expression, title, logarithmic): one drawing each, of the metrics that a run has."""


def training(run: pathlib.Path) -> str:
    """The curves of every training run that left metrics."""
    body = ""
    for name, heading in RUNS.items():
        records = read_metrics(run / name) if (run / name / METRICS_FILE).is_file() else []
        svgs = [
            curves(f"{title} ({name})", series, log=log, value_name="")
            for pattern, title, log in DRAWINGS
            if (series := pick_series(records, pattern, log))
        ]
        body += page.subheading(heading) + page.drawings(svgs) if svgs else ""
    return body


def pick_series(records: Sequence[Mapping[str, Any]], pattern: str, log: bool) -> Series:
    """The metrics whose whole name matches, as lines over steps; what cannot be drawn on a log axis is left out."""
    names = sorted({name for record in records for name in record if re.fullmatch(pattern, name)})
    series = {}
    for name in names:
        points = [(record["step"], float(record[name])) for record in records if record.get(name) is not None]
        points = [(step, value) for step, value in points if value > 0 or not log]
        if points:
            series[name.rpartition("/")[2]] = tuple(zip(*points))
    return series

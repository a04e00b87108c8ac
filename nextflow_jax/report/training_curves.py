"""The section of training curves: which metrics of each training run are drawn together."""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nextflow_jax.report import page
from nextflow_jax.report.curves import Series, curves
from nextflow_jax.training.metrics import METRICS_FILE, read_metrics
from nextflow_jax.training.workdir import CONFIG_FILE

HEADINGS = {"contrastive": "Teacher: image-text dual encoder", "tokenizer": "Vision tokenizer", "decoder": "Decoder"}
"""Kind of a training run, which is also the name of its folder within a larger run -> heading."""

DRAWINGS: tuple[tuple[str, str, bool], ...] = (
    (r"loss", "total loss", True),
    (r"loss/(?!total|entropy|generator|discriminator|lecam|r1).+", "loss terms", True),
    (r"loss/entropy.*", "entropy terms", False),
    (r"cross_entropy/(text|vision)", "cross-entropy: text and vision", True),
    (r"cross_entropy/scale_\d+", "cross-entropy of each scale", True),
    (r"accuracy/(text|vision)", "accuracy: text and vision", False),
    (r"accuracy/scale_\d+", "accuracy of each scale", False),
    (r"retrieval/.+", "retrieval@1 within the batch", False),
    (r"psnr", "PSNR of training batches (dB)", False),
    (r"codebook/usage/.+", "codebook usage", False),
    (r"codebook/perplexity/.+", "codebook perplexity", True),
    (r"codebook/revived", "codes revived in a step", False),
    (r"codebook/unexplained", "share of the features' variance that the codes leave", True),
    (r"codebook/semantic_share", "semantic half's share of the distance", False),
    (r"loss/(generator|discriminator|lecam|r1)", "losses of generator and discriminator", False),
    (r"adversarial/logit_.+", "discriminator's logits", False),
    (r"adversarial/accuracy", "discriminator's accuracy", False),
    (r"adversarial/(weight|adaptive)", "weight of the generator's loss", True),
)
"""(metrics by regular expression, title, logarithmic): one drawing each, of the metrics that a run has."""


def training(run: pathlib.Path) -> str:
    """The curves of every training run that left metrics: `run` itself and those in its sub-folders."""
    folders = {path: name for name in HEADINGS if (path := run / name).is_dir()}
    if (run / CONFIG_FILE).is_file():
        folders[run] = kind_of(run)
    body = ""
    for folder, kind in folders.items():
        records = metrics_of(folder)
        svgs = [
            curves(f"{title} ({kind})", series, log=log, value_name="")
            for pattern, title, log in DRAWINGS
            if (series := pick_series(records, pattern, log))
        ]
        body += page.subheading(HEADINGS.get(kind, kind)) + page.drawings(svgs) if svgs else ""
    return body


def kind_of(run: pathlib.Path) -> str:
    """What a training run trains, by its configuration."""
    return json.loads((run / CONFIG_FILE).read_text(encoding="utf-8"))["kind"]


def metrics_of(run: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a training run, none where it has not logged any."""
    return read_metrics(run) if (run / METRICS_FILE).is_file() else []


def pick_series(records: Sequence[Mapping[str, Any]], pattern: str, log: bool) -> Series:
    """The metrics whose whole name matches, as lines over steps; what cannot be drawn on a log axis is left out."""
    names = sorted({name for record in records for name in record if re.fullmatch(pattern, name)}, key=_by_number)
    series = {}
    for name in names:
        points = [(record["step"], float(record[name])) for record in records if record.get(name) is not None]
        points = [(step, value) for step, value in points if value > 0 or not log]
        if points:
            series[name.rpartition("/")[2]] = tuple(zip(*points))
    return series


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sorts scale_2 before scale_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]

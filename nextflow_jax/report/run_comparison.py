"""Training runs of any kind side by side: their last figures, and the same metric of all runs in one drawing each."""

import json
import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from nextflow_jax.report import page
from nextflow_jax.report.curves import curves
from nextflow_jax.report.goodput_section import restarts
from nextflow_jax.report.sections import number
from nextflow_jax.report.training_curves import HEADINGS, kind_of, metrics_of, pick_series
from nextflow_jax.training.workdir import CONFIG_FILE

Runs = Mapping[str, pathlib.Path]
"""Name on the page -> folder of a training run."""

OPEN: tuple[tuple[str, str, bool], ...] = (
    (r"loss", "loss", True),
    (r"cross_entropy/text", "cross-entropy, text (nats)", True),
    (r"cross_entropy/vision", "cross-entropy, vision (nats)", True),
    (r"accuracy/(text|vision)", "accuracy, {}", False),
    (r"retrieval/.+", "retrieval@1 within the batch, {}", False),
    (r"psnr", "PSNR of training batches (dB)", False),
    (r"codebook/(usage|perplexity)/all_scales", "codebook, {}", False),
    (r"learning_rate", "learning rate", False),
    (r"grad_norm", "gradient norm", True),
    (r"update_norm", "update norm", True),
    (r"param_norm", "parameter norm", False),
)
"""(metrics by regular expression, title with the metric's last words, logarithmic): a drawing a metric."""

SPEED: tuple[tuple[str, str, bool], ...] = (
    (r"tokens_per_s", "tokens a second", False),
    (r"step_ms", "milliseconds a step", True),
    (r"data_wait", "share of time waiting for data", False),
    (r"mfu", "MFU", False),
    (r"goodput", "goodput so far", False),
    (r"memory/.+", "memory, {}", False),
)
"""How fast it went."""

FOLDED: tuple[tuple[str, tuple[tuple[str, str, bool], ...]], ...] = (
    ("Each scale", ((r"cross_entropy/scale_\d+", "cross-entropy, {}", True),)),
    ("Terms of the loss", ((r"loss/.+", "{}", False),)),
    ("Gradient norms by part of the model", ((r"grad_norm/.+", "gradient norm, {}", True),)),
    ("Update norms by part of the model", ((r"update_norm/.+", "update norm, {}", True),)),
    ("Parameter norms by part of the model", ((r"param_norm/.+", "parameter norm, {}", False),)),
    ("Residual stream", ((r"residual/(rms|outlier)/.+", "residual stream, {}", True),)),
)
"""Behind a line that opens them: what has a drawing for every part."""

LAST = (r"loss", r"cross_entropy/(text|vision)", r"accuracy/(text|vision)", r"retrieval/.+", r"psnr", r"grad_norm")
TYPICAL = (r"tokens_per_s", r"step_ms", r"data_wait", r"mfu")
"""Metrics of the table: at the last record, and the median over the records."""


def training_runs(folders: Runs) -> dict[str, pathlib.Path]:
    """The training runs among folders: itself, or those in the sub-folders of a larger run."""
    runs = {}
    for name, folder in folders.items():
        if (folder / CONFIG_FILE).is_file():
            runs[name] = folder
        else:
            parts = (folder / kind for kind in HEADINGS)
            runs |= {f"{name}/{part.name}": part for part in parts if (part / CONFIG_FILE).is_file()}
    return runs


def by_kind(runs: Runs) -> dict[str, dict[str, pathlib.Path]]:
    """The runs of each kind of training."""
    kinds: dict[str, dict[str, pathlib.Path]] = {}
    for name, folder in runs.items():
        kinds.setdefault(kind_of(folder), {})[name] = folder
    return kinds


def final_figures(runs: Runs) -> str:
    """A table a kind: how far each run came, its last values, its usual speed."""
    body = ""
    for kind, own in by_kind(runs).items():
        records = {name: metrics_of(folder) for name, folder in own.items()}
        steps = {name: json.loads((folder / CONFIG_FILE).read_text())["train"]["steps"] for name, folder in own.items()}
        rows = [["steps", *(f"{_last_step(records[name])} of {steps[name]}" for name in own)]]
        rows += [["times started again", *(str(len(restarts(folder))) for folder in own.values())]]
        for pattern, of, said in [(p, _last, "") for p in LAST] + [(p, _median, ", median") for p in TYPICAL]:
            for metric in _names(records.values(), pattern):
                rows.append([metric + said, *(number(of(each, metric)) for each in records.values())])
        heading = page.subheading(HEADINGS.get(kind, kind)) if len(by_kind(runs)) > 1 else ""
        body += heading + page.table(["", *own], rows)
    return body


def overlaid(runs: Runs) -> str:
    """The curves of all runs of a kind together; dotted lines are where a run was started again."""
    body = ""
    for kind, own in by_kind(runs).items():
        records = {name: metrics_of(folder) for name, folder in own.items()}
        marks = {name: restarts(folder) for name, folder in own.items()}
        part = page.drawings(_draw(kind, records, marks, OPEN))
        part += page.subheading("Speed") + page.drawings(_draw(kind, records, marks, SPEED))
        for summary, drawings in FOLDED:
            svgs = _draw(kind, records, marks, drawings)
            part += page.folded(summary, page.drawings(svgs)) if svgs else ""
        body += (page.subheading(HEADINGS.get(kind, kind)) if len(by_kind(runs)) > 1 else "") + part
    marked = any(restarts(folder) for folder in runs.values())
    return (page.paragraph("Dotted lines: a run was started again there.") if marked else "") + body


def _draw(
    kind: str,
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    marks: Mapping[str, Sequence[int]],
    drawings: Sequence[tuple[str, str, bool]],
) -> list[str]:
    svgs = []
    for pattern, title, log in drawings:
        for metric in _names(records.values(), pattern):
            lines = {name: pick_series(own, re.escape(metric), log) for name, own in records.items()}
            series = {name: next(iter(line.values()), ((), ())) for name, line in lines.items()}
            if any(steps for steps, _ in series.values()):
                words = " ".join(metric.split("/")[1:]).replace("_", " ")
                own_title = f"{kind}: {title.format(words)}"
                svgs.append(curves(own_title, series, log=log, value_name="", marks=marks))
    return svgs


def _names(records: Any, pattern: str) -> list[str]:
    """The metrics that match, in the order of their first appearance."""
    names = {name: None for own in records for record in own for name in record}
    return [name for name in names if re.fullmatch(pattern, name)]


def _last_step(records: Sequence[Mapping[str, Any]]) -> int:
    return records[-1]["step"] if records else 0


def _last(records: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    return records[-1].get(metric) if records else None


def _median(records: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    values = [record[metric] for record in records if record.get(metric) is not None]
    return statistics.median(values) if values else None

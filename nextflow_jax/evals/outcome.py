"""What the parts of an evaluation leave behind, as values and as files; the report reads them.

OUT/evaluation/<part>.json     figures and answers of a part, and what they were made from
OUT/evaluation/<part>.npz      its pictures
OUT/metrics.json               all figures: contract keys at the top, heldout{}, unseen{}, chance{}, bounds{}, targets{}
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

FOLDER = "evaluation"
METRICS_FILE = "metrics.json"
GROUPS = ("heldout", "unseen")
"""Parts whose figures have a group of their own in metrics.json."""


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """What a part found: figures for metrics.json, and the answers themselves for the report."""

    metrics: dict[str, float]
    chance: dict[str, float] = dataclasses.field(default_factory=dict)
    """Levels to read some metrics against, under the metric's name: what answering at random would score."""
    bounds: dict[str, float] = dataclasses.field(default_factory=dict)
    """What the tokenizer alone would allow: the score of perfect codes."""
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """One answer each, JSON-ready."""
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Pictures, uint8; entry i belongs to record i, that of "stages" to the record that says so."""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    """More figures in groups, JSON-ready: those of each size, of each scale."""


def save_outcome(folder: pathlib.Path, name: str, outcome: Outcome, made_from: Mapping[str, Any]) -> None:
    """Writes a part's pictures, then its figures: a part is complete when its JSON file stands."""
    arrays = folder / f"{name}.npz"
    temporary = arrays.with_name(f"{name}.unfinished.npz")
    np.savez_compressed(temporary, **outcome.arrays)
    os.replace(temporary, arrays)
    figures = {key: json_numbers(getattr(outcome, key)) for key in ("metrics", "chance", "bounds")}
    answers = {"records": outcome.records, "details": outcome.details}
    write_json(folder / f"{name}.json", {"made_from": made_from, **figures, **answers})


def read_outcome(folder: pathlib.Path, name: str) -> Outcome | None:
    """A part's figures, answers and pictures; None when it has not been run."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    with np.load(folder / f"{name}.npz") as arrays:
        pictures = dict(arrays)
    figures = (_with_nan(content[key]) for key in ("metrics", "chance", "bounds"))
    return Outcome(*figures, content["records"], arrays=pictures, details=content.get("details", {}))


def is_made(path: pathlib.Path, made_from: Mapping[str, Any]) -> bool:
    """Whether a part's JSON file stands at `path` and was made from exactly this."""
    return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["made_from"] == made_from


def merge_outcomes(folder: pathlib.Path, names: Iterable[str]) -> dict[str, Any]:
    """The figures of the parts `names`, as far as they have been run, in the form of metrics.json."""
    merged: dict[str, Any] = {"chance": {}, "bounds": {}}
    for name in names:
        outcome = read_outcome(folder, name)
        if outcome is None:
            continue
        metrics, chance, bounds = map(json_numbers, (outcome.metrics, outcome.chance, outcome.bounds))
        if name in GROUPS:
            merged[name], merged["chance"][name], merged["bounds"][name] = metrics, chance, bounds
        else:
            merged |= metrics
            merged["chance"] |= chance
            merged["bounds"] |= bounds
    return merged


def update_metrics(out: pathlib.Path, changes: Mapping[str, Any], stale: Collection[str] = ()) -> dict[str, Any]:
    """Sets keys of OUT/metrics.json, drops the `stale` ones that are not set, and keeps the others; returns all."""
    path = out / METRICS_FILE
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    metrics = {name: value for name, value in metrics.items() if name not in stale} | changes
    write_json(path, metrics)
    return metrics


def spread(total: int, count: int) -> list[int]:
    """At most `count` of 0 ... total-1, evenly spaced: data sets lie in groups, and a report is to show them all."""
    return sorted({int(i) for i in np.linspace(0, total - 1, min(count, total))})


def json_numbers(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Figures ready for JSON, which has no NaN: a mean over no pictures becomes null."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _with_nan(figures: Mapping[str, float | None]) -> dict[str, float]:
    """What `json_numbers` made ready, as it was."""
    return {name: math.nan if value is None else value for name, value in figures.items()}


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes JSON to `path` in one step: what stands there is always whole."""
    temporary = path.with_name(path.name + ".unfinished")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)

"""`python -m nextflow_jax.report RUN_DIR [RUN_DIR ...]`: one self-contained page about a run, or comparing several.

RUN_DIR is what launch/quickstart.sh fills (training runs in sub-folders, `evaluation/` and `metrics.json` from
nextflow_jax.evaluate, `seconds/<stage>` from the script), or the folder of a single training run, with or without an
evaluation in it. Sections whose files are missing are left out. Where there are stage times they are added to
RUN_DIR/metrics.json. Several folders, training runs of any kind or tokenizer evaluations, are compared in
OUT/index.html.
"""

import argparse
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from nextflow_jax.errors import UserError, run_entry_point
from nextflow_jax.evals.outcome import METRICS_FILE, update_metrics
from nextflow_jax.folders import require_folder
from nextflow_jax.report import (
    comparison,
    goodput_section,
    page,
    run_comparison,
    sections,
    tokenizer_sections,
    training_curves,
)
from nextflow_jax.training.workdir import CONFIG_FILE

STAGES = ("install", "contrastive", "tokenizer", "extract", "decoder", "export", "evaluate", "report")
"""In the order in which they run."""
SECONDS = "seconds"
"""Folder of the stage times."""

COMPARISON = pathlib.Path("report")
"""Where a comparison goes when nothing is said: it belongs to none of its runs."""


def main(arguments: Sequence[str]) -> None:
    """Writes the page and prints the table of results."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m nextflow_jax.report", description=__doc__.partition("\n\n")[2])
    parser.add_argument("run", nargs="+", metavar="RUN_DIR", type=pathlib.Path, help="folder of a run")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=pathlib.Path,
        help=f"folder of the page (default: RUN_DIR/report; of a comparison: ./{COMPARISON})",
    )
    options = parser.parse_args(arguments)
    if options.out:
        require_folder("--out", options.out)
    if len(options.run) > 1:
        _compare(options.run, options.out or COMPARISON)
        return
    run = options.run[0]
    if not any((run / name).is_file() for name in (METRICS_FILE, CONFIG_FILE)):
        raise UserError(
            f"{run / METRICS_FILE}: no such file, nor {CONFIG_FILE} of a training run; "
            f"`python -m nextflow_jax.evaluate` --out {run} makes it"
        )
    seconds = read_seconds(run / SECONDS)
    path = write_report(run, seconds, options.out or run / "report")
    if seconds:
        # The stage that this command is counts too, and the script can write down its time only after it.
        seconds["report"] = seconds.get("report", 0.0) + time.monotonic() - started
    print_results(_metrics(run, seconds))
    print(f"report: {path}")


def write_report(run: pathlib.Path, seconds: Mapping[str, float], out: pathlib.Path) -> pathlib.Path:
    """Builds OUT/index.html from the files of the run; returns its path."""
    metrics = _metrics(run, seconds)
    parts = [
        ("Results", sections.results(metrics)),
        ("Sizes and scales", tokenizer_sections.sizes_and_scales(metrics)),
        ("Text to image", sections.text_to_image(run)),
        ("Held-out combinations", sections.heldout(run)),
        ("Edits of bases never trained on", sections.edits(run, "unseen")),
        ("Edits", sections.edits(run)),
        ("Captions", sections.captions(run)),
        ("Reconstructions", sections.reconstructions(run)),
        ("Reconstruction, scale by scale", tokenizer_sections.grid(run)),
        ("Training", training_curves.training(run)),
        ("Goodput", goodput_section.goodput(run_comparison.training_runs({run.resolve().name: run}))),
        ("Time", sections.times(seconds)),
        ("Configurations", sections.configurations(run)),
    ]
    path = out / "index.html"
    out.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".unfinished")
    lead = f"{run.resolve().name}: what was trained, how it went, what came out."
    temporary.write_text(page.document("nextflow_jax report", lead, parts), encoding="utf-8")
    os.replace(temporary, path)
    return path


def _compare(runs: Sequence[pathlib.Path], out: pathlib.Path) -> None:
    print(f"comparison: {comparison.write_comparison(runs, out)}")


def _metrics(run: pathlib.Path, seconds: Mapping[str, float]) -> dict[str, Any]:
    """The content of metrics.json, the stage times added where there are any; empty when there is no such file."""
    if seconds:
        return update_metrics(run, {"seconds": dict(seconds), "total_seconds": math.fsum(seconds.values())})
    path = run / METRICS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_seconds(folder: pathlib.Path) -> dict[str, float]:
    """Wall-clock seconds of each stage from the files that launch/quickstart.sh keeps, in the order of the stages."""
    found = {path.name: float(path.read_text()) for path in folder.glob("*")} if folder.is_dir() else {}
    return {stage: found[stage] for stage in STAGES if stage in found}


def print_results(metrics: Mapping) -> None:
    """The table of results as plain text."""
    rows = [("", "measured", "target", "chance", "bound"), *sections.metric_rows(metrics)]
    if "seconds" in metrics:
        rows += [(f"seconds, {stage}", f"{value:.0f}", "", "", "") for stage, value in metrics["seconds"].items()]
        rows.append(("seconds, total", f"{metrics['total_seconds']:.0f}", "", "", ""))
    width = max(len(row[0]) for row in rows)
    for name, *cells in rows:
        print(f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells))


if __name__ == "__main__":
    run_entry_point(main)

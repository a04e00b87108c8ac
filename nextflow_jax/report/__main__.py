"""`python -m nextflow_jax.report RUN_DIR`: adds stage times to RUN_DIR/metrics.json, writes RUN_DIR/report/index.html.

RUN_DIR is what launch/quickstart.sh fills: training runs in sub-folders, `evaluation/` and `metrics.json` from
nextflow_jax.evaluate, `seconds/<stage>` from the script. Sections whose files are missing are left out.
"""

import argparse
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence

from nextflow_jax.errors import UserError, run_entry_point
from nextflow_jax.evals.outcome import METRICS_FILE, update_metrics
from nextflow_jax.report import page, sections, training_curves

STAGES = ("install", "contrastive", "tokenizer", "extract", "decoder", "export", "evaluate", "report")
"""In the order in which they run."""


def main(arguments: Sequence[str]) -> None:
    """Writes the page and prints the table of results."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m nextflow_jax.report", description=__doc__.split("\n")[0])
    parser.add_argument("run", metavar="RUN_DIR", type=pathlib.Path, help="folder of a run, e.g. runs/quickstart")
    run = parser.parse_args(arguments).run
    if not (run / METRICS_FILE).is_file():
        raise UserError(f"{run / METRICS_FILE}: no such file; `python -m nextflow_jax.evaluate` --out {run} makes it")
    seconds = read_seconds(run / "seconds")
    path = write_report(run, seconds)
    # The stage that this command is counts too, and the script can write down its time only after it.
    seconds["report"] = seconds.get("report", 0.0) + time.monotonic() - started
    metrics = update_metrics(run, {"seconds": seconds, "total_seconds": math.fsum(seconds.values())})
    print_results(metrics)
    print(f"report: {path}")


def write_report(run: pathlib.Path, seconds: Mapping[str, float]) -> pathlib.Path:
    """Builds RUN_DIR/report/index.html from the files of the run; returns its path."""
    metrics = update_metrics(run, {"seconds": dict(seconds), "total_seconds": math.fsum(seconds.values())})
    parts = [
        ("Results", sections.results(metrics)),
        ("Text to image", sections.text_to_image(run)),
        ("Held-out combinations", sections.heldout(run)),
        ("Edits", sections.edits(run)),
        ("Captions", sections.captions(run)),
        ("Reconstructions", sections.reconstructions(run)),
        ("Training", training_curves.training(run)),
        ("Time", sections.times(seconds)),
        ("Configurations", sections.configurations(run)),
    ]
    path = run / "report" / "index.html"
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".unfinished")
    lead = f"{run.name}: what was trained, how it went, what came out."
    temporary.write_text(page.document("nextflow_jax report", lead, parts), encoding="utf-8")
    os.replace(temporary, path)
    return path


def read_seconds(folder: pathlib.Path) -> dict[str, float]:
    """Wall-clock seconds of each stage from the files that launch/quickstart.sh keeps, in the order of the stages."""
    found = {path.name: float(path.read_text()) for path in folder.glob("*")} if folder.is_dir() else {}
    return {stage: found[stage] for stage in STAGES if stage in found}


def print_results(metrics: Mapping) -> None:
    """The table of results as plain text."""
    rows = [("", "measured", "target", "chance", "bound"), *sections.metric_rows(metrics)]
    rows += [(f"seconds, {stage}", f"{value:.0f}", "", "", "") for stage, value in metrics["seconds"].items()]
    rows.append(("seconds, total", f"{metrics['total_seconds']:.0f}", "", "", ""))
    width = max(len(row[0]) for row in rows)
    for name, *cells in rows:
        print(f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells))


if __name__ == "__main__":
    run_entry_point(main)

"""The page that compares runs: figures, configurations, curves, time; of tokenizers their evaluations and pictures."""

import json
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from nextflow_jax.errors import UserError
from nextflow_jax.evals.outcome import METRICS_FILE
from nextflow_jax.evals.tokenizer_parts import SUFFIXES
from nextflow_jax.report import goodput_section, page, run_comparison
from nextflow_jax.report.pictures import card, gallery, picture, sign, stack
from nextflow_jax.report.sections import LABELS, number
from nextflow_jax.report.tokenizer_sections import described, image, read_split, stages
from nextflow_jax.report.training_curves import HEADINGS
from nextflow_jax.training.workdir import CONFIG_FILE

STAGED = 3
"""Pictures of a split that are shown after each scale."""
ABSENT = "—"
MEASURED_ON = ("pictures", "splits", "seed")
"""Settings of an evaluation that decide what its figures are of."""
REPEATED = ("seed", "name", "teacher", "init_from.workdir")
"""What may differ between runs that are repetitions of one another: the seed, and where earlier stages of it lie."""

Runs = Mapping[str, pathlib.Path]
"""Name on the page -> folder."""


def write_comparison(folders: Sequence[pathlib.Path], out: pathlib.Path) -> pathlib.Path:
    """Builds OUT/index.html from training runs of any kind and folders with a tokenizer evaluation; returns its path.

    Raises:
      UserError: a folder that is neither, or one named twice.
    """
    named = name_runs(folders)
    metrics = {name: found for name, folder in named.items() if (found := _read_metrics(folder))}
    evaluated = {name: named[name] for name in metrics}
    trained = run_comparison.training_runs(named)
    for name, folder in named.items():
        if name not in metrics and not any(folder in (path, path.parent) for path in trained.values()):
            raise UserError(
                f"{folder}: neither a training run ({CONFIG_FILE}) nor a tokenizer evaluation there; train with "
                f"--workdir {folder}, or make one with `python -m nextflow_jax.evaluate` --workdir RUN --out {folder}"
            )
    parts = [
        ("Results", results(metrics) if metrics else ""),
        ("Over seeds", repetitions(evaluated, metrics) if metrics else ""),
        ("Final figures", run_comparison.final_figures(trained)),
        ("Differences", differences(trained | evaluated)),
        ("Training", run_comparison.overlaid(trained)),
        ("Goodput", goodput_section.goodput(trained)),
        ("Reconstructions", pictures(evaluated) if metrics else ""),
    ]
    out.mkdir(parents=True, exist_ok=True)
    path = out / "index.html"
    temporary = path.with_suffix(".unfinished")
    temporary.write_text(page.document("nextflow_jax: runs compared", ", ".join(named), parts), encoding="utf-8")
    os.replace(temporary, path)
    return path


def name_runs(folders: Sequence[pathlib.Path]) -> Runs:
    """Each folder under the shortest end of its path that tells it from the others.

    Raises:
      UserError: the same folder twice.
    """
    paths = [folder.resolve() for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"RUN_DIR {path} is given more than once; name each run once")
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, folders))


def comparison_rows(metrics: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Rows (figure, one value a run): overall, then of each size where a run has several."""
    rows = []
    for name, label in LABELS.items():
        rows.append([label, *(number(values.get(name)) for values in metrics.values())])
    sizes = {size: None for values in metrics.values() if len(values.get("sizes", {})) > 1 for size in values["sizes"]}
    for size in sizes:
        for name, label in LABELS.items():
            figures = (values.get("sizes", {}).get(size, {}) for values in metrics.values())
            rows.append([f"{label}, {size}", *(number(each.get(name)) for each in figures)])
    return [row for row in rows if any(row[1:])]


def results(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of figures, a column a run; a warning where they were not measured alike."""
    body = ""
    made_from = [values["made_from"] for values in metrics.values()]
    measured = {what: [made[what] for made in made_from] for what in ("pictures", "sizes")}
    measured |= {f"evaluation.{what}": [made["evaluation"].get(what) for made in made_from] for what in MEASURED_ON}
    for what, values in measured.items():
        if any(value != values[0] for value in values):
            body += page.paragraph(f"Not measured alike: made_from.{what} differs between the runs' {METRICS_FILE}.")
    return body + page.table(["", *metrics], comparison_rows(metrics))


def repetitions(runs: Runs, metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Mean and standard deviation over runs that differ in their seed alone; empty where there are none."""
    groups: dict[str, list[str]] = {}
    for name, folder in runs.items():
        config = {key: value for key, value in _config(folder).items() if key not in REPEATED}
        groups.setdefault(json.dumps(config, sort_keys=True) if config else name, []).append(name)
    if all(len(names) == 1 for names in groups.values()):
        return ""
    rows = []
    for name, label in LABELS.items():
        of_groups = ([metrics[run].get(name) for run in names] for names in groups.values())
        row = [_mean([value for value in values if value is not None]) for values in of_groups]
        rows += [[label, *row]] if any(row) else []
    header = [f"{os.path.commonprefix(names).strip('/_-. ') or names[0]} ({len(names)})" for names in groups.values()]
    lead = "Runs whose configurations differ in nothing but the seed: mean, and standard deviation over the runs."
    return page.paragraph(lead) + page.table(["", *header], rows)


def differences(runs: Runs) -> str:
    """The values of the configurations that are not the same in all runs of a kind."""
    configs = {name: _config(folder) for name, folder in runs.items()}
    absent = [name for name, config in configs.items() if not config]
    if absent:
        return page.paragraph(
            f"No {CONFIG_FILE} in {', '.join(absent)}: evaluate into the run's own folder to see this."
        )
    kinds: dict[str, dict[str, dict[str, str]]] = {}
    for name, config in configs.items():
        kinds.setdefault(json.loads(config["kind"]), {})[name] = config
    if len(kinds) == 1:
        return _difference_table(configs)
    bodies = {kind: _difference_table(own) for kind, own in kinds.items() if len(own) > 1}
    return "".join(page.subheading(HEADINGS.get(kind, kind)) + body for kind, body in bodies.items())


def pictures(runs: Runs) -> str:
    """Pictures that all runs have kept: original, then every run's reconstruction above its error."""
    body = ""
    for split in SUFFIXES:
        outcomes = {name: read_split(folder, split) for name, folder in runs.items()}
        if any(outcome is None for outcome in outcomes.values()):
            continue
        kept = {
            name: {(record["key"], record["size"]): record for record in outcome.records}
            for name, outcome in outcomes.items()
        }
        common = [place for place in next(iter(kept.values())) if all(place in own for own in kept.values())]
        sides = [_side_by_side(outcomes, {name: own[place] for name, own in kept.items()}) for place in common]
        staged = [_all_stages(outcomes, {name: own[place] for name, own in kept.items()}) for place in common[:STAGED]]
        if common:
            body += page.subheading(f"{split} pictures") + gallery(sides)
            body += page.subheading(f"{split} pictures after each scale") + gallery(staged)
    return page.paragraph("Original; then each run's reconstruction, with its error below.") + body if body else ""


def _side_by_side(outcomes: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> str:
    first, record = next(iter(records.items()))
    parts = [picture(image(outcomes[first], record, "original"), f"{record['caption']}, original")]
    for name, own in records.items():
        copy, error = (
            picture(image(outcomes[name], own, what), f"{own['caption']}, {words} of {name}")
            for what, words in (("copy", "reconstruction"), ("error", "error"))
        )
        parts.append(stack(sign(name), copy, error))
    words = "\n".join([record["caption"], *(f"{name}: {described(own)}" for name, own in records.items())])
    return card(parts, words)


def _all_stages(outcomes: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [part for name, own in records.items() for part in (sign(name), stages(outcomes[name], own))]
    return card([stack(*rows)], next(iter(records.values()))["caption"])


def _read_metrics(folder: pathlib.Path) -> dict[str, Any]:
    """The figures of a tokenizer evaluation; empty where there is none."""
    path = folder / METRICS_FILE
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return metrics if "tokenizer" in metrics.get("made_from", {}) else {}


def _difference_table(configs: Mapping[str, Mapping[str, str]]) -> str:
    keys = {key: None for config in configs.values() for key in config}
    rows = [[key, *(config.get(key, ABSENT) for config in configs.values())] for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    if not rows:
        return page.paragraph("The configurations are the same.")
    return page.table(["", *configs], rows)


def _mean(values: Sequence[float]) -> str:
    """Mean and sample deviation in words; of one value the value, of none nothing."""
    if len(values) < 2:
        return "".join(map(number, values))
    return f"{number(statistics.mean(values))} ± {number(statistics.stdev(values))}"


def _config(folder: pathlib.Path) -> dict[str, str]:
    """A run's configuration as dotted names and values in words; empty where there is none."""
    path = folder / CONFIG_FILE
    return _flat(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _flat(config: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(config, Mapping):
        return {prefix: json.dumps(config)}
    flat = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat

"""The whole evaluation of a bundle: runs the parts and writes OUT/metrics.json.

A part whose file stands there, made from the same bundle, pictures and settings, is not run again.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from nextflow_jax.config import to_plain_dict
from nextflow_jax.data.pictures import PictureSet
from nextflow_jax.evals.config import EvaluationConfig
from nextflow_jax.evals.outcome import FOLDER, is_made, merge_outcomes, save_outcome, update_metrics
from nextflow_jax.evals.parts import PARTS, Subject


def run_suite(
    make_subject: Callable[[], Subject],
    origin: Mapping[str, str],
    pictures: PictureSet,
    config: EvaluationConfig,
    out: pathlib.Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Runs the parts that are not there yet and writes metrics.json.

    Args:
      make_subject: loads the model; called once, and only when a part has to run.
      origin: fingerprints of the bundle.
      pictures: what the model is asked about.
      config: settings.
      out: folder for the results.
      say: takes one line about progress.

    Returns:
      The content of metrics.json.
    """
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    made_from = {**origin, "pictures": pictures.fingerprint, "evaluation": to_plain_dict(config)}
    subject = None
    for name, part in PARTS.items():
        if is_made(folder / f"{name}.json", made_from):
            say(f"{name}: complete")
            continue
        subject = subject or make_subject()
        outcome = part(subject)
        save_outcome(folder, name, outcome, made_from)
        say(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in outcome.metrics.items()))
    metrics = {**merge_outcomes(folder, PARTS), "targets": dict(config.targets), "made_from": made_from}
    update_metrics(out, metrics)
    return metrics

"""The evaluation of a vision tokenizer: measures the splits and writes OUT/metrics.json.

    OUT/evaluation/tokenizer_<split>.{json,npz}    figures and pictures of a split, and what they were made from
    OUT/metrics.json                               psnr, ssim, lpips and rfid of each split (psnr_train, psnr_val, ...),
                                                   codebook_usage, perplexity (those of the train split; others with
                                                   their suffix), sizes{HxW: the same}, scales{split: [usage,
                                                   perplexity]}, left_out{metric: why}, targets{}, made_from{}

A split whose file stands there, made from the same tokenizer, pictures and settings, is not measured again.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nextflow_jax.config import to_plain_dict
from nextflow_jax.data.pictures import PictureSet
from nextflow_jax.errors import UserError
from nextflow_jax.evals.config import TokenizerEvaluationConfig
from nextflow_jax.evals.inception import FEATURES
from nextflow_jax.evals.judges import check_files, load_judges
from nextflow_jax.evals.outcome import FOLDER, is_made, read_outcome, save_outcome, update_metrics
from nextflow_jax.evals.tokenizer_parts import FIGURES, SUFFIXES, Size, TokenizerSubject, measure_split, metric_name
from nextflow_jax.vision.codec import VisionTokenizerCodec

METRIC_NAMES = {metric_name(figure, split) for figure in FIGURES for split in SUFFIXES}
"""What an earlier evaluation with other settings may have left in metrics.json."""
PROGRESS_LINES = 10
"""Of each split."""


def run_tokenizer_suite(
    codec: VisionTokenizerCodec,
    origin: Mapping[str, Any],
    pictures: PictureSet,
    sizes: Sequence[Size],
    config: TokenizerEvaluationConfig,
    out: pathlib.Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measures the splits that are not there yet and writes metrics.json.

    Args:
      codec: the tokenizer.
      origin: where it comes from, JSON-ready; its fingerprint is added.
      pictures: what it rebuilds.
      sizes: heights and widths; see `TokenizerEvaluationConfig.sizes`.
      config: settings.
      out: folder for the results.
      say: takes one line about progress.

    Returns:
      The content of metrics.json.

    Raises:
      UserError: a size that the tokenizer or the pictures do not have, a split without pictures, or weights files that
        are named and unusable.
    """
    for size in sizes:
        codec.family.schedule(size)
    empty = [split for split in config.splits if not pictures.split(split)]
    if empty:
        raise UserError(f"config.evaluation.splits = {config.splits}: no pictures in {', '.join(empty)}; leave it out")
    check_files(config)
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    made_from = {
        "tokenizer": codec.fingerprint,
        **origin,
        "pictures": pictures.fingerprint,
        "sizes": [list(size) for size in sizes],
        "evaluation": to_plain_dict(config),
    }
    subject = None
    for split in config.splits:
        name = part_name(split)
        if is_made(folder / f"{name}.json", made_from):
            say(f"{split}: complete")
            continue
        if subject is None:
            subject = TokenizerSubject(codec, pictures, sizes, load_judges(config), config, progress=_told(say))
            _explain(subject, say)
        outcome = measure_split(subject, split)
        save_outcome(folder, name, outcome, made_from)
        say(f"{split}: " + ", ".join(f"{key} {value:.3f}" for key, value in outcome.metrics.items()))
    metrics = {**merge_parts(folder, config.splits), "targets": dict(config.targets), "made_from": made_from}
    return update_metrics(out, metrics, stale=METRIC_NAMES)


def part_name(split: str) -> str:
    """The file of a split, without its ending."""
    return f"tokenizer_{split}"


def merge_parts(folder: pathlib.Path, splits: Sequence[str]) -> dict[str, Any]:
    """The figures of the splits that have been measured, in the form of metrics.json."""
    merged: dict[str, Any] = {"sizes": {}, "scales": {}, "left_out": {}}
    for split in splits:
        outcome = read_outcome(folder, part_name(split))
        if outcome is not None:
            merged |= outcome.metrics
            for size, figures in outcome.details["sizes"].items():
                merged["sizes"].setdefault(size, {}).update(figures)
            merged["scales"] |= outcome.details["scales"]
            merged["left_out"] |= outcome.details["left_out"]
    return merged


def _explain(subject: TokenizerSubject, say: Callable[[str], None]) -> None:
    """What is left out, and what to know of the rFID."""
    for reason in subject.judges.left_out.values():
        say(reason)
    fewest = min(len(subject.pictures.split(split)) for split in subject.config.splits)
    fewest = min(fewest, subject.config.pictures)
    if subject.judges.features is not None and fewest < FEATURES:
        say(
            f"rfid of fewer pictures ({fewest}) than features ({FEATURES}) is far above that of many; "
            "compare it at equal numbers only"
        )


def _told(say: Callable[[str], None]) -> Callable[[str, int, int], None]:
    """Passes on a tenth of the progress."""
    shown: dict[str, int] = {}

    def progress(what: str, done: int, total: int) -> None:
        tenth = done * PROGRESS_LINES // total
        if tenth > shown.get(what, 0):
            shown[what] = tenth
            say(f"  {what}: {done} of {total}")

    return progress

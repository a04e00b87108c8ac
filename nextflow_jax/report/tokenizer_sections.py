"""The sections about a vision tokenizer's evaluation: its figures by size and scale, and the reconstruction grid."""

import pathlib
from collections.abc import Mapping
from typing import Any

from nextflow_jax.evals.outcome import FOLDER, Outcome, read_outcome
from nextflow_jax.evals.tokenizer_parts import ERROR_GAIN, FIGURES, SUFFIXES, metric_name
from nextflow_jax.evals.tokenizer_suite import part_name
from nextflow_jax.report import page
from nextflow_jax.report.pictures import card, gallery, picture, sign, stack, strip
from nextflow_jax.report.sections import number

STAGE_WIDTH = 64
"""The picture after each scale is drawn about this wide."""


def sizes_and_scales(metrics: Mapping[str, Any]) -> str:
    """Tables of the figures of each size, where there are several, and of each scale; what was left out, and why."""
    body = "".join(page.paragraph(reason) for reason in metrics.get("left_out", {}).values())
    sizes = metrics.get("sizes", {})
    if len(sizes) > 1:
        names = [metric_name(figure, split) for figure in FIGURES for split in SUFFIXES]
        names = [name for name in names if any(name in figures for figures in sizes.values())]
        rows = [[size, *(number(figures.get(name)) for name in names)] for size, figures in sizes.items()]
        body += page.subheading("Each size") + page.table(["", *names], rows)
    for split, scales in metrics.get("scales", {}).items():
        rows = [[str(k), number(scale["usage"]), number(scale["perplexity"])] for k, scale in enumerate(scales, 1)]
        body += page.subheading(f"Each scale, {split} pictures") + page.table(("scale", "usage", "perplexity"), rows)
    if metrics.get("scales"):
        body += page.paragraph("Usage of a scale: codes that occur, over the most that could: codes or positions seen.")
    return body


def read_split(run: pathlib.Path, split: str) -> Outcome | None:
    """What the evaluation left of a split; None when it was not measured."""
    return read_outcome(run / FOLDER, part_name(split))


def image(outcome: Outcome, record: Mapping[str, Any], what: str) -> Any:
    """A kept picture of a record: "original", "copy", "error" [h, w, 3] or "stages" [K, h, w, 3]."""
    return outcome.arrays[f"{what}_{record['size']}"][record["row"]]


def described(record: Mapping[str, Any]) -> str:
    """The scores of one picture in words."""
    extra = "".join(f", {name.upper()} {record[name]:.3f}" for name in ("ssim", "lpips") if name in record)
    return f"{record['psnr']:.1f} dB{extra}"


def grid(run: pathlib.Path) -> str:
    """Original, reconstruction and error of pictures of each split, and the reconstruction after each scale."""
    body = ""
    for split in SUFFIXES:
        outcome = read_split(run, split)
        if outcome is not None and outcome.records:
            cards = [_grid_card(outcome, record) for record in outcome.records]
            body += page.subheading(f"{split} pictures") + gallery(cards)
    lead = f"Original, reconstruction, absolute error ({ERROR_GAIN} times); below, decoded after each scale."
    return page.paragraph(lead) + body if body else ""


def stages(outcome: Outcome, record: Mapping[str, Any]) -> str:
    """The picture after each scale, in a row."""
    shown = [
        picture(stage, f"{record['caption']}, after scale {k}", STAGE_WIDTH)
        for k, stage in enumerate(image(outcome, record, "stages"), 1)
    ]
    return strip(shown)


def _grid_card(outcome: Outcome, record: Mapping[str, Any]) -> str:
    original, copy, error = (
        picture(image(outcome, record, what), f"{record['caption']}, {words}")
        for what, words in (("original", "original"), ("copy", "reconstruction"), ("error", "error"))
    )
    first = strip([original, sign("→"), copy, sign("error"), error])
    return card([stack(first, stages(outcome, record))], f"{record['caption']}\n{record['size']}, {described(record)}")

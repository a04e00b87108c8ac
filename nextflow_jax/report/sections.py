"""The sections of the report, each made from files of the run; one whose files are missing is left out."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from nextflow_jax.evals.outcome import FOLDER, read_outcome, spread
from nextflow_jax.report import page
from nextflow_jax.report.pictures import card, gallery, picture, sign, stack

SHOWN = 48
"""Answers of one kind on the page, at most."""

LABELS = {
    "psnr_train": "Reconstruction PSNR, training pictures (dB)",
    "psnr_val": "Reconstruction PSNR, validation pictures (dB)",
    "ssim_train": "Reconstruction SSIM, training pictures",
    "ssim_val": "Reconstruction SSIM, validation pictures",
    "lpips_train": "Reconstruction LPIPS, training pictures",
    "lpips_val": "Reconstruction LPIPS, validation pictures",
    "rfid_train": "Reconstruction FID, training pictures",
    "rfid_val": "Reconstruction FID, validation pictures",
    "codebook_usage": "Codebook usage, training pictures",
    "codebook_usage_val": "Codebook usage, validation pictures",
    "perplexity": "Codebook perplexity, training pictures",
    "perplexity_val": "Codebook perplexity, validation pictures",
    "t2i_retrieval_at_1": "Text to image, retrieval@1 among reconstructions",
    "t2i_retrieval_at_1_originals": "Text to image, retrieval@1 among originals",
    "caption_exact_match": "Captions, exact match",
    "caption_exact_match_strict": "Captions, exact match without names of identical pictures",
    "edit_retrieval_at_1": "Edits, retrieval@1 among reconstructions",
    "edit_right_attribute": "Edits, right attribute among the base's variants",
}
"""Metrics at the top level of metrics.json, in the order of the page."""

HELDOUT_LABELS = {
    "retrieval_at_1": "Held-out, retrieval@1 among reconstructions",
    "retrieval_at_1_originals": "Held-out, retrieval@1 among originals",
    "right_base": "Held-out, right base",
    "right_attribute": "Held-out, right attribute among the base's variants",
    "caption_exact_match": "Held-out, caption exact match",
    "edit_retrieval_at_1": "Held-out, edits, retrieval@1 among reconstructions",
    "edit_right_attribute": "Held-out, edits, right attribute among the base's variants",
}

UNSEEN_LABELS = {
    "edit_retrieval_at_1": "Edits of bases never trained on, retrieval@1 among reconstructions",
    "edit_right_attribute": "Edits of bases never trained on, right attribute among the base's variants",
}

RETRIEVAL = (
    "Retrieval@1: the share of generated pictures whose nearest neighbour (mean squared pixel distance) among all "
    "pictures of the data set is the wanted one; candidates that cannot be told apart count as right. Chance: "
    "answering with a random candidate. Bound: what perfect codes would score through this tokenizer."
)


def metric_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Rows (name, measured, target, chance, bound) of the table of results; what was not measured has no row."""
    targets, chance, bounds = (metrics.get(name, {}) for name in ("targets", "chance", "bounds"))
    rows = []
    for name, label in LABELS.items():
        if name in metrics:
            row = (metrics[name], targets.get(name), chance.get(name), bounds.get(name))
            rows.append([label, *map(number, row)])
    heldout = metrics.get("heldout", {})
    heldout_chance = {
        **chance.get("heldout", {}),
        "right_base": heldout.get("chance_base"),
        "right_attribute": heldout.get("chance_attribute"),
    }
    groups = {
        "heldout": (HELDOUT_LABELS, heldout, heldout_chance),
        "unseen": (UNSEEN_LABELS, metrics.get("unseen", {}), chance.get("unseen", {})),
    }
    for group, (labels, measured, by_chance) in groups.items():
        for name, label in labels.items():
            if measured.get(name) is not None:
                row = (measured[name], None, by_chance.get(name), bounds.get(group, {}).get(name))
                rows.append([label, *map(number, row)])
    return rows


def results(metrics: Mapping[str, Any]) -> str:
    """The table of metrics beside target, chance and what the tokenizer allows."""
    rows = metric_rows(metrics)
    if not rows:
        return ""
    explanation = RETRIEVAL if any("retrieval" in name for name in metrics) else ""
    header, *rows = _without_empty_columns([("", "measured", "target", "chance", "bound"), *rows])
    return (page.paragraph(explanation) if explanation else "") + page.table(header, rows)


def reconstructions(run: pathlib.Path) -> str:
    """Originals above their reconstructions, training and validation pictures."""
    outcome = read_outcome(run / FOLDER, "reconstruction")
    if outcome is None:
        return ""
    body = page.paragraph("Above: the original. Below: decoded from its codes.")
    for split in ("train", "validation"):
        cards = [
            card(
                [stack(_original(outcome.arrays["original"][i], record), _copy(outcome.arrays["copy"][i], record))],
                f"{record['caption']}\n{record['psnr']:.1f} dB",
            )
            for i, record in enumerate(outcome.records)
            if record["split"] == split
        ]
        body += page.subheading(f"{split} pictures") + gallery(cards) if cards else ""
    return body


def text_to_image(run: pathlib.Path) -> str:
    """Prompts with the picture after each scale, then more prompts with wanted and generated picture."""
    outcome = read_outcome(run / FOLDER, "text_to_image")
    if outcome is None:
        return ""
    records, arrays = outcome.records, outcome.arrays
    staged = []
    for i, record in enumerate(records):
        if "stages" not in record:
            continue
        steps = [
            picture(image, f"{record['prompt']}, after scale {k}")
            for k, image in enumerate(arrays["stages"][record["stages"]], 1)
        ]
        wanted = [sign("wanted"), picture(arrays["wanted"][i], record["prompt"])]
        staged.append(card([*steps, *wanted], record["prompt"], record["right"]))
    pairs = [_pair(record, arrays, i, record["prompt"]) for i, record in _picked(records)]
    return (
        page.paragraph("Training captions drawn greedily. First the picture after every scale, coarse to fine.")
        + gallery(staged)
        + page.subheading("More: wanted, then generated")
        + gallery(pairs)
    )


def captions(run: pathlib.Path) -> str:
    """Pictures with the caption the model wrote; the right one under a wrong answer."""
    outcome = read_outcome(run / FOLDER, "captions")
    if outcome is None:
        return ""
    cards = []
    for i, record in _picked(outcome.records):
        words = record["answer"] if record["right"] else f"{record['answer']}\nwanted: {record['caption']}"
        cards.append(card([picture(outcome.arrays["picture"][i], record["caption"])], words, record["right"]))
    return gallery(cards)


def edits(run: pathlib.Path, part: str = "edits") -> str:
    """Before, instruction, generated picture, wanted picture; `part` of the evaluation: "edits" or "unseen"."""
    outcome = read_outcome(run / FOLDER, part)
    if outcome is None or not outcome.records:
        return ""
    cards = []
    for i, record in _picked(outcome.records):
        images = {name: outcome.arrays[name][i] for name in ("before", "answer", "wanted")}
        parts = [
            picture(images["before"], "before"),
            sign("→"),
            picture(images["answer"], "generated"),
            sign("wanted"),
            picture(images["wanted"], "wanted"),
        ]
        cards.append(card(parts, record["instruction"], record["right"]))
    return gallery(cards)


def heldout(run: pathlib.Path) -> str:
    """Combinations never seen in training: wanted and generated, with the parts of the judgement."""
    outcome = read_outcome(run / FOLDER, "heldout")
    if outcome is None or not outcome.records:
        return ""
    cards = []
    for i, record in _picked(outcome.records):
        judged = " and ".join(name for name in ("base", "attribute") if record[f"right_{name}"])
        verdict = f"{judged} right" if judged else "neither base nor attribute right"
        words = f"{record['prompt']}\n{verdict}\ncaptioned: {record['answer']}"
        cards.append(_pair(record, outcome.arrays, i, words))
    lead = "Bases and attributes that were seen in training, in combinations that were not. Wanted, then generated."
    return page.paragraph(lead) + gallery(cards)


def times(seconds: Mapping[str, float]) -> str:
    """Wall-clock time of each stage, reruns and interruptions included."""
    if not seconds:
        return ""
    rows = [[name, _duration(value)] for name, value in seconds.items()]
    return page.table(("stage", "time"), [*rows, ["total", _duration(sum(seconds.values()))]])


def configurations(run: pathlib.Path) -> str:
    """The resolved configuration of each training run, folded."""
    folds = []
    for path in [*run.glob("config.json"), *sorted(run.glob("*/config.json"))]:
        config = json.loads(path.read_text(encoding="utf-8"))
        train = config["train"]
        summary = f"{path.parent.name}: {train['steps']} steps of {train['batch_size']} rows, seed {config['seed']}"
        folds.append(page.foldable(summary, json.dumps(config, indent=2)))
    return "".join(folds)


def _without_empty_columns(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """A table with its header in the first row, without the columns in which no other row has anything."""
    kept = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    return [[row[i] for i in kept] for row in rows]


def _picked(records: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Answers spread over the whole list, so that right and wrong ones appear in proportion."""
    return [(i, records[i]) for i in spread(len(records), SHOWN)]


def _pair(record: Mapping[str, Any], arrays: Mapping[str, Any], i: int, words: str) -> str:
    parts = [picture(arrays["wanted"][i], "wanted"), sign("→"), picture(arrays["answer"][i], "generated")]
    return card(parts, words, record["right"])


def _original(image: Any, record: Mapping[str, Any]) -> str:
    return picture(image, f"{record['caption']}, original")


def _copy(image: Any, record: Mapping[str, Any]) -> str:
    return picture(image, f"{record['caption']}, reconstruction")


def number(value: float | None) -> str:
    """A figure as the tables show it; nothing where it was not measured."""
    if value is None:
        return ""
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"

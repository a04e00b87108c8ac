"""The parts of the evaluation: each asks the model for one kind of answer and scores it beside its chance level.

A part is a function `Subject -> Outcome`; `PARTS` is the table that the suite goes through.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from nextflow_jax.data.keys import numpy_generator
from nextflow_jax.data.openmoji.tasks import edit_pairs
from nextflow_jax.data.pictures import PictureSet
from nextflow_jax.evals import captions, reconstruction, retrieval
from nextflow_jax.evals.answers import Answers
from nextflow_jax.evals.config import EvaluationConfig
from nextflow_jax.evals.outcome import Outcome, spread
from nextflow_jax.evals.pool import Pool

Pictures = UInt8[np.ndarray, "Q height width 3"]


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """What is evaluated: the model's answers, about these pictures."""

    pictures: PictureSet
    pool: Pool
    answers: Answers
    codebook_size: int
    config: EvaluationConfig

    @property
    def language(self) -> str:
        """The language that prompts and captions are in: the main one of the data set."""
        return self.pictures.config.languages[0]

    def caption(self, key: str) -> str:
        """A picture's caption."""
        return self.pictures.info(key).captions[self.language]

    def accepted(self, key: str) -> tuple[str, ...]:
        """Captions that are right for a picture: its own and those of the pictures with exactly its pixels."""
        return tuple(self.caption(name) for name in (key, *self.pictures.twins.get(key, ())))

    def choose(self, items: Sequence[Any], count: int, *names: str) -> list[Any]:
        """At most `count` of `items`, drawn without repetition, in their order; `names` name the draw."""
        if len(items) <= count:
            return list(items)
        drawn = numpy_generator(self.config.seed, "evaluation", *names).choice(len(items), count, replace=False)
        return [items[i] for i in sorted(drawn)]


def rebuild(subject: Subject) -> Outcome:
    """Reconstruction: PSNR and SSIM on train and validation pictures, codebook usage on the train pictures."""
    pool, pictures = subject.pool, subject.pictures
    train, validation = (pool.indices(pictures.split(name)) for name in ("train", "validation"))
    metrics = {
        "psnr_train": _mean(reconstruction.psnr(pool.images[train], pool.copies[train])),
        "psnr_val": _mean(reconstruction.psnr(pool.images[validation], pool.copies[validation])),
        "ssim_train": _mean(reconstruction.ssim(pool.images[train], pool.copies[train])),
        "ssim_val": _mean(reconstruction.ssim(pool.images[validation], pool.copies[validation])),
        "codebook_usage": reconstruction.codebook_usage(pool.codes[train], subject.codebook_size),
    }
    shown = [
        key
        for split in ("train", "validation")
        for key in subject.choose(pictures.split(split), subject.config.shown, "rebuild", split)
    ]
    rows = pool.indices(shown)
    scores = reconstruction.psnr(pool.images[rows], pool.copies[rows])
    records = [
        {"key": key, "caption": subject.caption(key), "split": pictures.info(key).split, "psnr": float(score)}
        for key, score in zip(shown, scores)
    ]
    return Outcome(metrics, records=records, arrays={"original": pool.images[rows], "copy": pool.copies[rows]})


def draw(subject: Subject) -> Outcome:
    """Text to image on training captions: is the wanted picture the nearest one?"""
    keys = subject.choose(subject.pictures.split("train"), subject.config.prompts, "prompts")
    stages = subject.answers.draw_stages([subject.caption(key) for key in keys])
    images = stages[:, -1]
    metrics, chance, bounds, right = _retrieval(subject.pool, images, keys)
    records = _picture_records(subject, keys, right)
    shown = spread(len(keys), subject.config.shown)
    for position, i in enumerate(shown):
        records[i]["stages"] = position
    names = ("retrieval_at_1", "retrieval_at_1_originals")
    return Outcome(
        {f"t2i_{name}": metrics[name] for name in names},
        {f"t2i_{name}": chance[name] for name in names},
        {"t2i_retrieval_at_1_originals": bounds["retrieval_at_1_originals"]},
        records,
        {"wanted": subject.pool.images[subject.pool.indices(keys)], "answer": images, "stages": stages[shown]},
    )


def describe(subject: Subject) -> Outcome:
    """Captions of training pictures: exact match, with and without counting the names of pixel-identical pictures."""
    train = subject.pictures.split("train")
    keys = subject.choose(train, subject.config.prompts, "prompts")
    metrics, records = _describe(subject, keys)
    metrics["caption_exact_match_strict"] = metrics.pop("strict")
    share = np.mean([len(set(subject.accepted(key))) for key in keys]) / len(train)
    return Outcome(
        metrics,
        {"caption_exact_match": float(share)},
        records=records,
        arrays={"picture": subject.pool.images[subject.pool.indices(keys)]},
    )


def edit(subject: Subject) -> Outcome:
    """Edits of training pictures: is the wanted picture the nearest one to the edited picture?"""
    pairs = subject.choose(edit_pairs(subject.pictures, "train"), subject.config.edits, "edits")
    return _edit(subject, pairs)


def combine(subject: Subject) -> Outcome:
    """Held-out combinations of a base and an attribute, both seen in training, never together.

    right_base: a nearest picture has the wanted base. right_attribute: among the pictures of the wanted base, the
    wanted one is a nearest. Both beside chance, for most of the other variants of a base are in training.
    """
    keys = subject.choose(subject.pictures.split("heldout"), subject.config.heldout, "heldout")
    if not keys:
        return Outcome({})
    pool, wanted = subject.pool, subject.pool.indices(keys)
    images = subject.answers.draw([subject.caption(key) for key in keys])
    metrics, chance, bounds, right = _retrieval(pool, images, keys)
    distances = retrieval.squared_distances(images, pool.copies)
    base = retrieval.right_group(distances, pool.bases, wanted)
    attribute = retrieval.found_within_group(distances, pool.bases, wanted)
    described, described_records = _describe(subject, keys)
    edited = _edit(subject, subject.choose(edit_pairs(subject.pictures, "heldout"), subject.config.edits, "heldout"))
    metrics |= {
        "count": float(len(keys)),
        "right_base": _mean(base),
        "right_attribute": _mean(attribute),
        "chance_base": retrieval.chance_group(pool.bases, wanted),
        "chance_attribute": retrieval.chance_within_group(pool.bases, wanted),
        "caption_exact_match": described["caption_exact_match"],
        **edited.metrics,
    }
    chance |= edited.chance
    records = _picture_records(subject, keys, right)
    for i, record in enumerate(records):
        record |= {"right_base": bool(base[i]), "right_attribute": bool(attribute[i])}
        record["answer"] = described_records[i]["answer"]
    return Outcome(metrics, chance, bounds, records, {"wanted": pool.images[wanted], "answer": images})


PARTS: dict[str, Callable[[Subject], Outcome]] = {
    "reconstruction": rebuild,
    "text_to_image": draw,
    "captions": describe,
    "edits": edit,
    "heldout": combine,
}


def _retrieval(
    pool: Pool, images: Pictures, keys: Sequence[str]
) -> tuple[dict[str, float], dict[str, float], dict[str, float], Bool[np.ndarray, "Q"]]:
    """(metrics, chance, bounds, right) of pictures that were to be those of `keys`."""
    wanted = pool.indices(keys)
    right = retrieval.found(retrieval.squared_distances(images, pool.copies), wanted)
    metrics = {
        "retrieval_at_1": _mean(right),
        "retrieval_at_1_originals": _found_share(images, pool.images, wanted),
    }
    chance = {
        "retrieval_at_1": retrieval.chance_found(pool.copies, wanted),
        "retrieval_at_1_originals": retrieval.chance_found(pool.images, wanted),
    }
    bounds = {"retrieval_at_1_originals": _found_share(pool.copies[wanted], pool.images, wanted)}
    return metrics, chance, bounds, right


def _describe(subject: Subject, keys: Sequence[str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    answers = subject.answers.describe(subject.pool.images[subject.pool.indices(keys)])
    accepted = [subject.accepted(key) for key in keys]
    right = captions.exact_match(answers, accepted)
    strict = captions.exact_match(answers, [names[:1] for names in accepted])
    records = [
        {"key": key, "caption": subject.caption(key), "answer": answer, "right": bool(hit)}
        for key, answer, hit in zip(keys, answers, right)
    ]
    return {"caption_exact_match": _mean(right), "strict": _mean(strict)}, records


def _edit(subject: Subject, pairs: Sequence[Any]) -> Outcome:
    if not pairs:
        return Outcome({})
    pool = subject.pool
    before, wanted = (pool.indices(keys) for keys in zip(*((pair.before_key, pair.after_key) for pair in pairs)))
    images = subject.answers.edit(pool.images[before], [pair.instruction for pair in pairs])
    right = retrieval.found(retrieval.squared_distances(images, pool.copies), wanted)
    records = [
        {"key": pair.after_key, "before": pair.before_key, "instruction": pair.instruction, "right": bool(hit)}
        for pair, hit in zip(pairs, right)
    ]
    return Outcome(
        {"edit_retrieval_at_1": _mean(right)},
        {
            "edit_retrieval_at_1": retrieval.chance_found(pool.copies, wanted),
            "edit_retrieval_at_1_by_copying": _found_share(pool.copies[before], pool.copies, wanted),
        },
        records=records,
        arrays={"before": pool.images[before], "wanted": pool.images[wanted], "answer": images},
    )


def _picture_records(subject: Subject, keys: Sequence[str], right: Bool[np.ndarray, "Q"]) -> list[dict[str, Any]]:
    return [{"key": key, "prompt": subject.caption(key), "right": bool(hit)} for key, hit in zip(keys, right)]


def _found_share(images: Pictures, candidates: Pictures, wanted: Int[np.ndarray, "Q"]) -> float:
    return _mean(retrieval.found(retrieval.squared_distances(images, candidates), wanted))


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")

"""The parts of the evaluation: each asks the model for one kind of answer and scores it beside its chance level.

A part is a function `Subject -> Outcome`; `PARTS` is the table that the suite goes through.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from nextflow_jax.data.document_sources import make_documents
from nextflow_jax.data.documents import Document
from nextflow_jax.data.keys import numpy_generator
from nextflow_jax.data.pictures import PictureSet
from nextflow_jax.evals import captions, reconstruction, retrieval
from nextflow_jax.evals.answers import Answers
from nextflow_jax.evals.config import EvaluationConfig
from nextflow_jax.evals.outcome import Outcome, spread
from nextflow_jax.evals.pool import Pool


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """What is evaluated: the model's answers, about these pictures."""

    pictures: PictureSet
    pool: Pool
    answers: Answers
    codebook_size: int
    config: EvaluationConfig

    def caption(self, key: str) -> str:
        """A picture's caption in the main language."""
        return self.pictures.info(key).captions[self._language]

    def accepted(self, key: str) -> tuple[str, ...]:
        """Captions that are right for a picture: its own first, then those of the pictures with exactly its pixels."""
        return tuple(self.caption(name) for name in (key, *self.pictures.twins.get(key, ())))

    def documents(self, task: str, split: str, count: int, draw: str) -> list[Document]:
        """At most `count` documents of a task, in the main language; which ones depends on the name `draw`."""
        every = make_documents(self.pictures, split, (task,), self.config.seed)
        spoken = {f"{task}/{language}/": language for language in self.pictures.config.languages}
        items = [
            document
            for document in every
            if all(language == self._language or not document.key.startswith(p) for p, language in spoken.items())
        ]
        return self.choose(items, count, draw)

    def choose(self, items: Sequence[Any], count: int, draw: str) -> list[Any]:
        """At most `count` of `items`, without repetition, in their order; which ones depends on the name `draw`."""
        if len(items) <= count:
            return list(items)
        chosen = numpy_generator(self.config.seed, "evaluation", draw).choice(len(items), count, replace=False)
        return [items[i] for i in sorted(chosen)]

    @property
    def _language(self) -> str:
        return self.pictures.config.languages[0]


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
        for key in subject.choose(pictures.split(split), subject.config.shown, f"rebuild {split}")
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
    documents = subject.documents("text_to_image", "train", subject.config.prompts, "prompts")
    stages = subject.answers.stages("pictures drawn", documents)
    outcome = _judge_pictures(subject, documents, stages[:, -1])
    shown = spread(len(documents), subject.config.shown)
    for position, i in enumerate(shown):
        outcome.records[i]["stages"] = position
    outcome.arrays["stages"] = stages[shown]
    figures = {
        name: {f"t2i_{metric}": value for metric, value in getattr(outcome, name).items()}
        for name in ("metrics", "chance", "bounds")
    }
    return dataclasses.replace(outcome, **figures)


def describe(subject: Subject) -> Outcome:
    """Captions of training pictures: exact match, with and without counting the names of pixel-identical pictures."""
    documents = subject.documents("image_to_text", "train", subject.config.prompts, "prompts")
    outcome = _judge_captions(subject, documents)
    names = [len(set(subject.accepted(record["key"]))) for record in outcome.records]
    chance = {"caption_exact_match": _mean(np.array(names)) / len(subject.pictures.split("train"))}
    return dataclasses.replace(outcome, chance=chance)


def edit(subject: Subject) -> Outcome:
    """Edits of training pictures: is the wanted picture the nearest one to the edited picture?"""
    return _judge_edits(subject, subject.documents("edit", "train", subject.config.edits, "edits"))


def combine(subject: Subject) -> Outcome:
    """Held-out combinations of a base and an attribute, both seen in training, never together.

    right_base: a nearest picture has the wanted base. right_attribute: among the pictures of the wanted base, the
    wanted one is a nearest. Both beside chance, for most of the other variants of a base are in training.
    """
    pool, config = subject.pool, subject.config
    documents = subject.documents("text_to_image", "heldout", config.heldout, "heldout")
    images = subject.answers.images("held-out pictures drawn", documents)
    drawn = _judge_pictures(subject, documents, images)
    described = _judge_captions(subject, subject.documents("image_to_text", "heldout", config.heldout, "heldout"))
    edited = _judge_edits(subject, subject.documents("edit", "heldout", config.edits, "heldout edits"))
    wanted = pool.indices([record["key"] for record in drawn.records])
    distances = retrieval.squared_distances(images, pool.copies)
    base = retrieval.right_group(distances, pool.bases, wanted)
    attribute = retrieval.found_within_group(distances, pool.bases, wanted)
    for i, record in enumerate(drawn.records):
        record |= {"right_base": bool(base[i]), "right_attribute": bool(attribute[i])}
        record["answer"] = described.records[i]["answer"]
    metrics = {
        "count": float(len(documents)),
        "right_base": _mean(base),
        "right_attribute": _mean(attribute),
        "chance_base": retrieval.chance_group(pool.bases, wanted),
        "chance_attribute": retrieval.chance_within_group(pool.bases, wanted),
    }
    return dataclasses.replace(
        drawn,
        metrics={**metrics, **drawn.metrics, **described.metrics, **edited.metrics},
        chance={**drawn.chance, **edited.chance},
    )


def transfer(subject: Subject) -> Outcome:
    """Edits of pictures whose whole family was never trained on: what was learned is the edit, not the picture."""
    documents = subject.documents("edit", "validation", subject.config.edits, "unseen edits")
    edited = _judge_edits(subject, documents)
    return dataclasses.replace(edited, metrics={"count": float(len(documents)), **edited.metrics})


PARTS: dict[str, Callable[[Subject], Outcome]] = {
    "reconstruction": rebuild,
    "text_to_image": draw,
    "captions": describe,
    "edits": edit,
    "heldout": combine,
    "unseen": transfer,
}


def _judge_pictures(
    subject: Subject, documents: Sequence[Document], images: UInt8[np.ndarray, "Q height width 3"]
) -> Outcome:
    """Retrieval of the pictures that the documents end with, for drawings of their captions."""
    pool, keys = subject.pool, [document.image_keys()[-1] for document in documents]
    wanted = pool.indices(keys)
    right = _found(images, pool.copies, wanted)
    return Outcome(
        metrics={
            "retrieval_at_1": _mean(right),
            "retrieval_at_1_originals": _mean(_found(images, pool.images, wanted)),
        },
        chance={
            "retrieval_at_1": retrieval.chance_found(pool.copies, wanted),
            "retrieval_at_1_originals": retrieval.chance_found(pool.images, wanted),
        },
        bounds={"retrieval_at_1_originals": _mean(_found(pool.copies[wanted], pool.images, wanted))},
        records=[{"key": key, "prompt": subject.caption(key), "right": bool(hit)} for key, hit in zip(keys, right)],
        arrays={"wanted": pool.images[wanted], "answer": images},
    )


def _judge_captions(subject: Subject, documents: Sequence[Document]) -> Outcome:
    """Exact match of captions for the pictures that the documents begin with."""
    keys = [document.image_keys()[0] for document in documents]
    answers = subject.answers.texts("captions written", documents)
    accepted = [subject.accepted(key) for key in keys]
    right = captions.exact_match(answers, accepted)
    strict = captions.exact_match(answers, [names[:1] for names in accepted])
    records = [
        {"key": key, "caption": subject.caption(key), "answer": answer, "right": bool(hit)}
        for key, answer, hit in zip(keys, answers, right)
    ]
    metrics = {"caption_exact_match": _mean(right), "caption_exact_match_strict": _mean(strict)}
    return Outcome(metrics, records=records, arrays={"picture": subject.pool.images[subject.pool.indices(keys)]})


def _judge_edits(subject: Subject, documents: Sequence[Document]) -> Outcome:
    """Retrieval of the edited pictures, among the reconstructions of all pictures and among those of the same base."""
    pool = subject.pool
    before, wanted = (pool.indices([document.image_keys()[end] for document in documents]) for end in (0, -1))
    images = subject.answers.images("pictures edited", documents)
    distances = retrieval.squared_distances(images, pool.copies)
    right = retrieval.found(distances, wanted)
    attribute = retrieval.found_within_group(distances, pool.bases, wanted)
    records = [
        {"key": document.image_keys()[-1], "instruction": document.segments[1].text, "right": bool(hit)}
        for document, hit in zip(documents, right)
    ]
    return Outcome(
        metrics={"edit_retrieval_at_1": _mean(right), "edit_right_attribute": _mean(attribute)},
        chance={
            "edit_retrieval_at_1": retrieval.chance_found(pool.copies, wanted),
            "edit_retrieval_at_1_by_copying": _mean(_found(pool.copies[before], pool.copies, wanted)),
            "edit_right_attribute": retrieval.chance_within_group(pool.bases, wanted),
        },
        records=records,
        arrays={"before": pool.images[before], "wanted": pool.images[wanted], "answer": images},
    )


def _found(
    images: UInt8[np.ndarray, "Q height width 3"],
    candidates: UInt8[np.ndarray, "R height width 3"],
    wanted: Int[np.ndarray, "Q"],
) -> Bool[np.ndarray, "Q"]:
    return retrieval.found(retrieval.squared_distances(images, candidates), wanted)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")

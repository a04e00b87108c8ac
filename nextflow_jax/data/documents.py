"""Documents before tokenization: interleaved texts and pictures, each with the side of the conversation it is on."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal

from nextflow_jax.errors import UserError

Role = Literal["prompt", "response"]
"""`prompt`: given to the model (a loss on it is the pipeline's choice); `response`: what the model is to produce."""

ROLES: tuple[Role, ...] = ("prompt", "response")

TASKS = ("text_to_image", "image_to_text", "edit", "frames", "interleaved", "text")
"""Every kind of document; data sets make those that they can, mixtures weigh them by these names."""


@dataclasses.dataclass(frozen=True)
class Text:
    """A run of text."""

    text: str
    role: Role
    loss: bool = True
    """False: never a loss on it; True: what the pipeline's rule says of its role."""


@dataclasses.dataclass(frozen=True)
class Image:
    """A picture, named by its key among the pictures of its data set."""

    key: str
    role: Role
    loss: bool = True
    """As of `Text`."""


Segment = Text | Image


@dataclasses.dataclass(frozen=True)
class Document:
    """One training or evaluation example.

    Raises:
      UserError: no segments, an unknown task or role, or nothing to produce.
    """

    key: str
    """Unique among all documents of a data set, stable across runs."""
    task: str
    segments: tuple[Segment, ...]
    source: str = ""
    """Where it comes from, a name that mixtures can weigh; empty: the data set has but one."""
    licence: str = ""

    def __post_init__(self):
        if self.task not in TASKS:
            raise UserError(f"document {self.key}: task {self.task!r} is not known; tasks are {', '.join(TASKS)}")
        for segment in self.segments:
            if segment.role not in ROLES:
                raise UserError(f"document {self.key}: role {segment.role!r} is not one of {', '.join(ROLES)}")
        if not any(segment.role == "response" for segment in self.segments):
            raise UserError(f"document {self.key} has no segment with role 'response', nothing to learn from")

    def image_keys(self) -> tuple[str, ...]:
        """The pictures of the document in order, repeats included."""
        return tuple(segment.key for segment in self.segments if isinstance(segment, Image))


def with_pictures_at_most(document: Document, most: int) -> Document | None:
    """The document up to the picture after the `most`-th and the words right before that; None: nothing to produce."""
    kept: list[Segment] = []
    pictures = 0
    for segment in document.segments:
        pictures += isinstance(segment, Image)
        if pictures > most:
            while kept and isinstance(kept[-1], Text):
                kept.pop()
            break
        kept.append(segment)
    if not any(segment.role == "response" for segment in kept):
        return None
    return dataclasses.replace(document, segments=tuple(kept))


def document_texts(documents: Iterable[Document]) -> Iterator[str]:
    """Every text segment of the documents in order: what a text tokenizer of theirs is trained on."""
    for document in documents:
        for segment in document.segments:
            if isinstance(segment, Text):
                yield segment.text

"""What is asked of the sampler and what it answers: documents in, continuations out, and a function for each task.

Every task is one `Request`: a document of texts and pictures, and what may follow it. The functions at the end lay
documents out as training shows them (nextflow_jax/data/documents.py); their `options` are fields of Request.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from nextflow_jax.sampling.settings import SamplingSettings

Picture = UInt8[np.ndarray, "_ _ 3"]
"""Rows, columns, RGB."""

THOUGHT_TOKENS = 128
"""Longest thought of `think_then_draw` if nothing else is said."""


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A document to continue, and how.

    The model writes text until it opens a picture or ends the document, draws the picture, writes on, and so forth,
    within the two caps. `begin_with_image` opens the first picture in any case, right away or after a thought.
    """

    document: Sequence[str | Picture]
    """Texts and pictures in order; the size of each picture must be one that the bundle knows."""
    size: tuple[int, int] | str | None = None
    """Of the pictures to draw: (height, width), "HxW", a ratio "W:H", a name such as "portrait", "condition" (that of
    the prompt's last picture) or "auto" (the text decides); None: the bundle's first size. See resolutions.py."""
    begin_with_image: bool = False
    """A picture comes first, whether the model would open one or not; `max_thought_tokens` of text may precede it."""
    max_images: int = 1
    max_text_tokens: int = 64
    """Text tokens written in all, between and after pictures; a thought is not counted."""
    max_thought_tokens: int = 0
    """Chain of thought: text tokens written before the first picture, which is drawn when they are used up or the model
    would end or open it; 0: none. Needs `begin_with_image`."""
    keep_thought: bool = True
    """Whether the thought is part of the result; the picture is drawn in its light in any case."""
    end_mark: str = ""
    """A token that ends the answer as `<eos>` does; chats have one after every turn. Not part of the text."""
    seed: int = 0
    """The only source of randomness: the same request gives the same answer in any batch."""
    settings: SamplingSettings | None = None
    """None: the bundle's."""


@dataclasses.dataclass(frozen=True, eq=False)
class GeneratedText:
    """Text that the model wrote."""

    text: str
    tokens: Int[np.ndarray, "tokens"]
    log_probs: Float[np.ndarray, "tokens"]
    """Log-probability of each token under the distribution it was drawn from (filters and temperature included)."""
    is_thought: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class GeneratedImage:
    """A picture that the model drew."""

    pixels: Picture
    codes: Int[np.ndarray, "N"]
    log_probs: Float[np.ndarray, "N"]
    """As for text; guidance included."""
    partial: tuple[Picture, ...] = ()
    """The picture after each scale, when asked for; the last equals `pixels`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """The continuation of one request."""

    segments: tuple[GeneratedText | GeneratedImage, ...]
    finish: str
    """Why it ended: "end" (the model ended the document), "text_limit", "image_limit" or "positions"."""

    @property
    def text(self) -> str:
        """All text, joined; thoughts are not in it."""
        return "".join(
            segment.text for segment in self.segments if isinstance(segment, GeneratedText) and not segment.is_thought
        )

    @property
    def thought(self) -> str:
        """The text before the first picture that the request asked for as a thought, where it is kept."""
        return "".join(
            segment.text for segment in self.segments if isinstance(segment, GeneratedText) and segment.is_thought
        )

    @property
    def images(self) -> list[Picture]:
        """All pictures, in order."""
        return [segment.pixels for segment in self.segments if isinstance(segment, GeneratedImage)]


def text_to_image(prompt: str, *, instruction: str = "", **options: Any) -> Request:
    """One picture of `prompt`, after an instruction if there is one."""
    return _drawing((*_given(instruction), prompt), options)


def caption(image: Picture, *, instruction: str = "", **options: Any) -> Request:
    """Text about a picture, no picture in the answer; an instruction ("caption in German") follows the picture."""
    return _telling((image, *_given(instruction)), options)


def answer(images: Picture | Sequence[Picture], question: str, *, instruction: str = "", **options: Any) -> Request:
    """The answer in words to a question about one or several pictures; a general instruction comes first."""
    return _telling((*_given(instruction), *_pictures(images), question), options)


def edit(images: Picture | Sequence[Picture], instruction: str, **options: Any) -> Request:
    """One picture: what the instruction makes of one or several condition pictures."""
    return _drawing((*_pictures(images), instruction), options)


def in_context(
    examples: Sequence[tuple[Picture, Picture]], query: Picture, *, instruction: str = "", **options: Any
) -> Request:
    """One picture: to the query what each example's second picture is to its first; an instruction comes first."""
    shown = [picture for example in examples for picture in example]
    return _drawing((*_given(instruction), *shown, query), options)


def think_then_draw(
    document: str | Sequence[str | Picture],
    *,
    instruction: str = "",
    max_thought_tokens: int = THOUGHT_TOKENS,
    **options: Any,
) -> Request:
    """One picture after a chain of thought: the model first writes about what is asked, then draws.

    Args:
      document: a prompt, or texts and pictures (an edit to be thought about).
      instruction: a system text before it, such as "Describe the picture in detail, then draw it."
      max_thought_tokens: where the thought is cut and the picture begins.
      options: fields of Request; `keep_thought=False` leaves the thought out of the result.
    """
    asked = (document,) if isinstance(document, str) else tuple(document)
    return _drawing((*_given(instruction), *asked), {"max_thought_tokens": max_thought_tokens, **options})


def story(
    document: str | Sequence[str | Picture], *, max_images: int = 4, max_text_tokens: int = 512, **options: Any
) -> Request:
    """Text and pictures in turn, as the model likes, within the two caps, until it ends the document."""
    begun = (document,) if isinstance(document, str) else tuple(document)
    return Request(begun, max_images=max_images, max_text_tokens=max_text_tokens, **options)


def frames(
    shown: Sequence[tuple[str, Picture]], *, max_images: int = 3, max_text_tokens: int = 64, **options: Any
) -> Request:
    """The frames that follow those shown, each named before it is drawn, as the shown ones are.

    Args:
      shown: (name, picture) of each frame so far.
      max_images: frames to come at most.
      max_text_tokens: of all their names together.
      options: fields of Request.
    """
    document = tuple(part for frame in shown for part in frame)
    return Request(document, **{"size": "condition", **options}, max_images=max_images, max_text_tokens=max_text_tokens)


def _drawing(document: tuple[str | Picture, ...], options: dict[str, Any]) -> Request:
    """One picture and nothing after it, unless the options allow text."""
    return Request(document, **{"begin_with_image": True, "max_text_tokens": 0, **options})


def _telling(document: tuple[str | Picture, ...], options: dict[str, Any]) -> Request:
    return Request(document, **{"max_images": 0, **options})


def _given(instruction: str) -> tuple[str, ...]:
    return (instruction,) if instruction else ()


def _pictures(images: Picture | Sequence[Picture]) -> tuple[Picture, ...]:
    return (images,) if isinstance(images, np.ndarray) else tuple(images)

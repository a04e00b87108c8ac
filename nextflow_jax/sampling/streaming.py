"""Answers while they grow: the engine's changes as events with finished text and pictures in them.

Events of one request come in the order of its answer; those of different requests come as the work is done. Joined,
the texts of a segment are its text in the result, and pictures are those of the result.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from nextflow_jax.sampling.answers import WRITE, Answer, TextPiece
from nextflow_jax.sampling.engine import Change, Unfinished, Written
from nextflow_jax.sampling.requests import GeneratedImage, Picture, Result
from nextflow_jax.sampling.results import TextOf, make_result, make_segment, shown_pieces

_HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers decode bytes to whose character is not complete yet."""


@dataclasses.dataclass(frozen=True, eq=False)
class TextEvent:
    """More text of a segment."""

    request: int
    segment: int
    """Which segment of the result it belongs to, from 0."""
    text: str
    is_thought: bool


@dataclasses.dataclass(frozen=True, eq=False)
class PartialImageEvent:
    """A picture as it stands after one of its scales; the last one has an ImageEvent instead."""

    request: int
    segment: int
    scale: int
    """Scales drawn, from 1."""
    num_scales: int
    pixels: Picture


@dataclasses.dataclass(frozen=True, eq=False)
class ImageEvent:
    """A finished picture."""

    request: int
    segment: int
    image: GeneratedImage


@dataclasses.dataclass(frozen=True, eq=False)
class ResultEvent:
    """A finished answer."""

    request: int
    result: Result


Event = TextEvent | PartialImageEvent | ImageEvent | ResultEvent


def stream_batch(answers: Sequence[Answer], steps: Iterator[Change], first: int, text_of: TextOf) -> Iterator[Event]:
    """The events of a batch. Pictures are fetched while the device is at the step after theirs.

    Args:
      answers: of the batch, empty; `steps` fills them.
      steps: from `Engine.steps`.
      first: the number of the batch's first request.
      text_of: unified ids to text.
    """
    reporters = [_Reporter(answer, first + i, text_of) for i, answer in enumerate(answers)]
    waiting: list[Callable[[], list[Event]]] = []
    for change in steps:
        for collect in waiting:
            yield from collect()
        waiting = _collectors(change, reporters)
        if isinstance(change, Written):  # is on the host already
            for collect in waiting:
                yield from collect()
            waiting = []
    for collect in waiting:
        yield from collect()


def _collectors(change: Change, reporters: Sequence["_Reporter"]) -> list[Callable[[], list[Event]]]:
    """What will give the events of a change: one function an answer. What they tell is settled now."""
    if isinstance(change, Unfinished):
        return [reporters[i].unfinished(change, place) for place, i in enumerate(change.answers)]
    return [reporters[i].grown() for i in change.answers]


class _Reporter:
    """Remembers how much of an answer has been told."""

    def __init__(self, answer: Answer, request: int, text_of: TextOf) -> None:
        self._answer = answer
        self._request = request
        self._text_of = text_of
        self._segment = 0
        """Segments before this one are told."""
        self._told = ""
        """Text of this segment that is told."""

    def unfinished(self, change: Unfinished, place: int) -> Callable[[], list[Event]]:
        """The picture of row `place` of the change."""
        segment = len(shown_pieces(self._answer))

        def collect() -> list[Event]:
            pixels = change.pictures.stages()[-1][place]
            return [PartialImageEvent(self._request, segment, change.scales, change.num_scales, pixels)]

        return collect

    def grown(self) -> Callable[[], list[Event]]:
        """All that is new of the answer as it stands now."""
        answer, pieces, events, images = self._answer, shown_pieces(self._answer), [], []
        ended = len(pieces) - 1 if pieces and not pieces[-1].is_image and not self._text_ended() else len(pieces)
        for i in range(self._segment, len(pieces)):
            if pieces[i].is_image:
                images.append(i)
            else:
                events += self._more_text(i, pieces[i], complete=i < ended)
        self._segment = ended
        finished = bool(answer.finish)

        def collect() -> list[Event]:
            drawn = [ImageEvent(self._request, i, make_segment(pieces[i], self._text_of)) for i in images]
            result = [ResultEvent(self._request, make_result(answer, self._text_of))] if finished else []
            return [*events, *drawn, *result]

        return collect

    def _text_ended(self) -> bool:
        """Whether the text that the answer ends with will not go on."""
        return bool(self._answer.finish) or not self._answer.may_do(WRITE)

    def _more_text(self, segment: int, piece: TextPiece, complete: bool) -> list[Event]:
        """The text that a piece has beyond what is told; without the end that more tokens may change."""
        text = self._text_of(piece.words)
        if not complete:
            text = text.rstrip(_HALF_A_CHARACTER)
        fresh = text[len(self._told) :]
        self._told = "" if complete else text
        return [TextEvent(self._request, segment, fresh, piece.is_thought)] if fresh else []

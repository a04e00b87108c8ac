"""Conversations about pictures in LLaVA's form to segments: what is asked has no loss, what is answered has.

The form is that of LLaVA's data (Liu et al. 2023, "Visual Instruction Tuning"): a list of turns
`{"from": "human", "value": "<image>\\nWhat is this?"}`, `{"from": "gpt", "value": "A cat."}`.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from nextflow_jax.data.corpus.raw import RawImage, RawSegment, RawText, RefusedDocument
from nextflow_jax.data.documents import Role
from nextflow_jax.data.ingest.builder import picture
from nextflow_jax.data.ingest.config import SourceConfig

PLACEHOLDER = "<image>"
"""Stands in a turn where a picture belongs."""

SPEAKERS: dict[str, Role] = {
    "human": "prompt",
    "user": "prompt",
    "system": "prompt",
    "gpt": "response",
    "assistant": "response",
}
"""What `from` may say."""


def converse(turns: Sequence[Any], pictures: Sequence[bytes], config: SourceConfig) -> tuple[str, list[RawSegment]]:
    """Task and segments of a conversation.

    The task is "text" without a picture, "image_to_text" for one picture that is asked about and one answer, otherwise
    "interleaved". Prompts have `loss=False`. White space beside a placeholder is left out.

    Args:
      turns: `{"from": one of SPEAKERS, "value": text}` each.
      pictures: as many as there are placeholders in all turns, in their order.
      config: whose limits the pictures keep.

    Raises:
      RefusedDocument, RefusedImage: another form, an unknown speaker, or too many or too few pictures.
    """
    said = [_turn(turn) for turn in turns]
    if sum(text.count(PLACEHOLDER) for _, text in said) != len(pictures):
        raise RefusedDocument("bad record")
    rest = iter(pictures)
    segments: list[RawSegment] = []
    for role, text in said:
        for number, run in enumerate(text.split(PLACEHOLDER)):
            if number:
                segments.append(picture(next(rest), config, role, loss=role == "response"))
            words = run.strip() if PLACEHOLDER in text else run
            if words:
                segments.append(RawText(words, role, loss=role == "response"))
    return _task(segments), segments


def _turn(turn: Any) -> tuple[Role, str]:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise RefusedDocument("bad record")
    if turn.get("from") not in tuple(SPEAKERS):
        raise RefusedDocument("unknown task")
    return SPEAKERS[turn["from"]], turn["value"]


def _task(segments: Sequence[RawSegment]) -> str:
    roles = [segment.role for segment in segments if isinstance(segment, RawImage)]
    if not roles:
        return "text"
    answers = [role for role, _ in itertools.groupby(segment.role for segment in segments)].count("response")
    return "image_to_text" if roles == ["prompt"] and answers == 1 else "interleaved"

"""From a record to what sequence.py flattens: which segments bear loss, condition, or feed their last scale."""

import dataclasses

import numpy as np
from jaxtyping import Int

from nextflow_jax import sequence
from nextflow_jax.data.documents import Role
from nextflow_jax.data.records import BrokenRecord, EncodedDocument, EncodedImage, EncodedText
from nextflow_jax.errors import UserError
from nextflow_jax.scales import ScheduleFamily
from nextflow_jax.vocabulary import Vocabulary

INVERTIBLE = "text_to_image"
"""The task whose documents `invert` turns around."""

_OTHER_ROLE: dict[Role, Role] = {"prompt": "response", "response": "prompt"}


@dataclasses.dataclass(frozen=True)
class PositionCounts:
    """What a document costs, split so that every setting's cost follows without reading the document.

    Pairs are those of a position and one that it sees (`sequence.visible_pairs`). Turned around, and with neither
    context blocks nor anything dropped, a document has the same positions and pairs. What dropping the condition saves
    of the pairs follows from lengths alone: `condition_pairs`.
    """

    plain: int
    """All positions, with neither condition dropped nor context blocks."""
    condition: int
    """Positions of text that guidance dropout takes away."""
    context: int
    """Positions that context blocks of its prompt pictures add."""
    inverted_context: int
    """Positions that they add to the document turned around, 0 where it cannot be."""
    pairs: int
    """Of the `plain` positions."""
    context_pairs: int
    """Pairs that context blocks of its prompt pictures add."""
    inverted_context_pairs: int
    """Pairs that they add to the document turned around, 0 where it cannot be."""


def count_positions(document: EncodedDocument, family: ScheduleFamily) -> PositionCounts:
    """Counts the positions and pairs of a document as `to_segments` and `sequence.flatten` make them."""
    plain = to_segments(document, family, response_only=False, last_scale_context=False)
    length, pairs = sequence.sequence_length(plain), sequence.visible_pairs(plain)

    def context(document: EncodedDocument) -> tuple[int, int]:
        if not any(isinstance(segment, EncodedImage) and segment.role == "prompt" for segment in document.segments):
            return 0, 0
        extended = to_segments(document, family, response_only=False, last_scale_context=True)
        return sequence.sequence_length(extended) - length, sequence.visible_pairs(extended) - pairs

    added = context(document)
    inverted_added = context(invert(document)) if document.task == INVERTIBLE else (0, 0)
    return PositionCounts(
        plain=length,
        condition=length - sequence.sequence_length(sequence.drop_condition(plain)),
        context=added[0],
        inverted_context=inverted_added[0],
        pairs=pairs,
        context_pairs=added[1],
        inverted_context_pairs=inverted_added[1],
    )


def condition_pairs(
    length: Int[np.ndarray, "documents"], condition: Int[np.ndarray, "documents"]
) -> Int[np.ndarray, "documents"]:
    """Pairs that documents of `length` positions lose with the `condition` of them that dropout takes away.

    Every lost position is text: of it and any other position, the later one sees the earlier. So c of L positions are
    in c (c + 1) / 2 + c (L - c) pairs, with context blocks (in L) and without.
    """
    condition = condition.astype(np.int64)
    return condition * length - condition * (condition - 1) // 2


def invert(document: EncodedDocument) -> EncodedDocument:
    """Text to image turned into captioning: the pictures are the prompt and the words the response, in this order.

    Source: NextFlow's pretraining, late in which a share of the text-to-image samples is inverted (recipe section 5).
    """
    segments = tuple(
        dataclasses.replace(segment, role=_OTHER_ROLE[segment.role]) for segment in reversed(document.segments)
    )
    return dataclasses.replace(document, task="image_to_text", segments=segments)


def to_segments(
    document: EncodedDocument, family: ScheduleFamily, *, response_only: bool, last_scale_context: bool
) -> list[sequence.Segment]:
    """The document's segments as sequence.py takes them.

    Args:
      document: as read from a shard.
      family: gives each picture its schedule.
      response_only: prompts bear no loss (supervised fine-tuning); otherwise everything does, except for segments
        whose own `loss` is off.
      last_scale_context: prompt pictures feed one more block with the codes of their last scale.

    Prompt text is a condition, which dropout may remove, where a picture is the response: guidance works on pictures,
    and a question about a picture must not lose its words.

    Raises:
      BrokenRecord: a picture whose size or number of codes the schedule family does not know.
    """
    generates = any(isinstance(segment, EncodedImage) and segment.role == "response" for segment in document.segments)
    segments: list[sequence.Segment] = []
    for segment in document.segments:
        loss = segment.loss and (segment.role == "response" or not response_only)
        prompt = segment.role == "prompt"
        if isinstance(segment, EncodedText):
            segments.append(sequence.TextSegment(segment.ids, loss=loss, condition=prompt and generates))
        else:
            segments.append(_image_segment(segment, family, loss, prompt and last_scale_context))
    return segments


def check_indices(document: EncodedDocument, vocabulary: Vocabulary) -> None:
    """Raises BrokenRecord when an index lies outside the vocabulary: embedding tables would clamp it in silence."""
    for segment in document.segments:
        if isinstance(segment, EncodedText):
            limits = ((segment.ids, vocabulary.text_size),)
        else:
            limits = ((segment.inputs, vocabulary.codebook_size), (segment.targets, vocabulary.codebook_size))
        for indices, limit in limits:
            if indices.size and not 0 <= indices.min() <= indices.max() < limit:
                raise BrokenRecord(f"index {indices.max()} is outside 0..{limit - 1}")


def _image_segment(
    image: EncodedImage, family: ScheduleFamily, loss: bool, context_block: bool
) -> sequence.ImageSegment:
    try:
        schedule = family.schedule(image.size)
    except UserError as error:
        raise BrokenRecord(str(error)) from error
    if not len(image.inputs) == len(image.targets) == schedule.num_tokens:
        raise BrokenRecord(f"{len(image.targets)} codes where {image.size} has {schedule.num_tokens}")
    return sequence.ImageSegment(schedule, image.inputs, image.targets, loss=loss, context_block=context_block)

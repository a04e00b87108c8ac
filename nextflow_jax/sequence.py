"""The sequence: how a document of text and images becomes the flat arrays of a row. The one definition of layout.

A document is a list of segments. Text takes one position a token. An image with grids (1,1) (2,2) ... (h_K,w_K) takes

    position   <boi>    scale 2 ...  scale K    [context block]   <eoi>
    time       t        t+1     ...  t+K-1      [t+K]             t+K or [t+K+1]
    input      token    scale 1's    scale K-1's  scale K's       token
                        codes, resized to this scale's grid
    target     scale 1  scale 2      scale K      none            the next text token

Attention: position i sees exactly the keys attend_start[i] <= j < attend_end[i]. Text ends at i+1; a scale's positions
all end where their block ends. For `a <boi> [2x2 scale] <eoi> b` in one document (1 = visible):

    a      1 0 0 0 0 0 0 0
    <boi>  1 1 0 0 0 0 0 0
    v      1 1 1 1 1 1 0 0      four rows alike
    <eoi>  1 1 1 1 1 1 1 0
    b      1 1 1 1 1 1 1 1

Source: NextFlow (arXiv 2601.02204), sections on next-scale prediction, positions and scale reweighting.
"""

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from nextflow_jax.errors import UserError
from nextflow_jax.image_layout import (
    ScaleLayout,
    SequenceConfig,
    image_pairs,
    image_positions,
    image_time,
    scale_layout,
    scale_weights,
)
from nextflow_jax.scales import ScaleSchedule
from nextflow_jax.vocabulary import Vocabulary

__all__ = [
    "Accumulate",
    "ImageSegment",
    "ScaleLayout",
    "Segment",
    "Sequence",
    "SequenceConfig",
    "TextSegment",
    "concatenate",
    "drop_condition",
    "flatten",
    "image_positions",
    "image_time",
    "pack_row",
    "scale_layout",
    "scale_weights",
    "sequence_length",
    "visible_pairs",
]

Accumulate = Callable[[ScaleSchedule, Int[np.ndarray, "N"]], list[Float[np.ndarray, "cells C"]]]
"""Entry i of the result: features summed over scales 1..i+1, on the grid of scale i+2 (the last: the final grid)."""


@dataclasses.dataclass(frozen=True)
class TextSegment:
    """Text ids (without specials). `loss`: its tokens are targets. `condition`: guidance dropout may remove it."""

    tokens: Int[np.ndarray, "tokens"]
    loss: bool = True
    condition: bool = False


@dataclasses.dataclass(frozen=True)
class ImageSegment:
    """An image's codes: what the decoder sees (`inputs`) and what it is to predict (`targets`).

    They differ under self-correction: inputs are sampled codes, targets the nearest ones (recipe section 5).
    `context_block` feeds the last scale's own codes in one more block, for images that condition what follows.
    """

    schedule: ScaleSchedule
    inputs: Int[np.ndarray, "N"]
    targets: Int[np.ndarray, "N"]
    loss: bool = True
    context_block: bool = False


Segment = TextSegment | ImageSegment


@dataclasses.dataclass(frozen=True)
class Sequence:
    """The arrays of a document or of a packed row; all have S entries (drawn in the module docstring)."""

    tokens: Int[np.ndarray, "S"]
    """Unified id at text positions; the pad id at vision positions."""
    vision_ids: Int[np.ndarray, "S T"]
    """Codes of the previous scale whose embeddings make the input."""
    vision_weights: Float[np.ndarray, "S T"]
    """Their weights; rows of zeros at text positions."""
    vision_features: Float[np.ndarray, "S C"] | None
    """Accumulated inputs: features in place of the weighted codes. None with residual inputs."""
    positions: Float[np.ndarray, "S 3"]
    """(time, row, column) of the RoPE."""
    scale_index: Int[np.ndarray, "S"]
    """0 = text, k = scale k (1-based), K+1 = context block."""
    num_scales: Int[np.ndarray, "S"]
    """K at an image's <boi> and vision positions, 0 elsewhere."""
    attend_start: Int[np.ndarray, "S"]
    attend_end: Int[np.ndarray, "S"]
    targets: Int[np.ndarray, "S"]
    """Unified id to predict; the pad id where there is none."""
    loss_weights: Float[np.ndarray, "S"]
    document: Int[np.ndarray, "S"]
    """1, 2, ... in a row; 0 = padding."""

    def __len__(self) -> int:
        return len(self.tokens)

    def arrays(self) -> dict[str, np.ndarray]:
        """Name to array, without `vision_features` when there are none."""
        items = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in items if value is not None}


def sequence_length(segments: Seq[Segment], bos: bool = True, eos: bool = True) -> int:
    """Positions `flatten` gives for these segments."""
    body = sum(
        len(segment.tokens)
        if isinstance(segment, TextSegment)
        else image_positions(segment.schedule, segment.context_block)
        for segment in segments
    )
    return body + int(bos) + int(eos)


def visible_pairs(segments: Seq[Segment], bos: bool = True, eos: bool = True) -> int:
    """Pairs (position, position it sees) of these segments: the sum of attend_end - attend_start of `flatten`.

    A segment of n positions sees all before it and, of its own, the `image_pairs` of a picture or the n (n + 1) / 2 of
    text. In a document of L positions that sums to (L^2 + sum of 2 own - n^2) / 2, whatever the segments' order.
    """
    length = sequence_length(segments, bos, eos)
    surplus = int(bos) + int(eos)
    for segment in segments:
        if isinstance(segment, TextSegment):
            surplus += len(segment.tokens)
        else:
            own = image_pairs(segment.schedule, segment.context_block)
            surplus += 2 * own - image_positions(segment.schedule, segment.context_block) ** 2
    return (length**2 + surplus) // 2


def drop_condition(segments: Seq[Segment]) -> list[Segment]:
    """The document without its condition text: the unguided half of classifier-free guidance. Images stay."""
    return [segment for segment in segments if not (isinstance(segment, TextSegment) and segment.condition)]


def flatten(
    segments: Seq[Segment],
    vocabulary: Vocabulary,
    config: SequenceConfig,
    *,
    bos: bool = True,
    eos: bool = True,
    accumulate: Accumulate | None = None,
) -> Sequence:
    """Lays one document out as flat arrays; its own positions start at 0.

    Args:
      segments: the document, in order.
      vocabulary: ids of specials and codes.
      config: layout constants and loss weights.
      bos: begin with `<bos>`.
      eos: end with `<eos>`, a target when the last segment is.
      accumulate: makes accumulated features from codes; needed when config.inputs is "accumulated".

    Raises:
      UserError: accumulated inputs without `accumulate`, or codes that do not fit their schedule.
    """
    if (accumulate is None) == (config.inputs == "accumulated"):
        verb = "need" if accumulate is None else "take no"
        raise UserError(f"sequence inputs {config.inputs!r} {verb} accumulated features; see SequenceConfig.inputs")
    parts = list(segments)
    if bos:
        parts.insert(0, TextSegment(np.asarray([vocabulary.bos]), loss=False))
    if eos:
        parts.append(TextSegment(np.asarray([vocabulary.eos]), loss=bool(segments) and segments[-1].loss))
    # Written in place: joining a block a segment takes several times as long.
    flat = _blank(sequence_length(parts, bos=False, eos=False), config, vocabulary)
    features: list[tuple[int, Float[np.ndarray, "_ C"]]] = []
    time, start = 0, 0
    for segment in parts:
        if isinstance(segment, TextSegment):
            _write_text(flat, segment, time, start, config)
            time += len(segment.tokens)
            start += len(segment.tokens)
        else:
            _write_image(flat, segment, time, start, vocabulary, config)
            if accumulate is not None:
                features.append((start + 1, _image_features(segment, accumulate)))
            time += image_time(segment.schedule, segment.context_block)
            start += image_positions(segment.schedule, segment.context_block)
    return dataclasses.replace(flat, vision_features=_join_features(features, len(flat))) if features else flat


def pack_row(sequences: Seq[Sequence], row_length: int, vocabulary: Vocabulary) -> Sequence:
    """Puts documents one after another into a row of `row_length` positions; none sees another; the rest is padding.

    Raises:
      ValueError: the documents are longer than the row.
    """
    total = sum(len(sequence) for sequence in sequences)
    if total > row_length:
        raise ValueError(f"documents of {total} positions do not fit a row of {row_length}")
    parts, offset = [], 0
    for number, sequence in enumerate(sequences, start=1):
        parts.append(
            dataclasses.replace(
                sequence,
                attend_start=sequence.attend_start + np.int32(offset),
                attend_end=sequence.attend_end + np.int32(offset),
                document=np.full(len(sequence), number, np.int32),
            )
        )
        offset += len(sequence)
    if offset < row_length:
        features = sequences[0].vision_features if sequences else None
        width = None if features is None else features.shape[1]
        taps = sequences[0].vision_ids.shape[1] if sequences else 1
        parts.append(_padding(row_length - offset, offset, taps, width, vocabulary))
    return concatenate(parts)


def concatenate(parts: Seq[Sequence]) -> Sequence:
    """The arrays of `parts`, one after another, unchanged."""
    names = [field.name for field in dataclasses.fields(Sequence)]
    columns = {name: [getattr(part, name) for part in parts] for name in names}
    with_features = any(features is not None for features in columns["vision_features"])
    if with_features:
        width = next(features.shape[1] for features in columns["vision_features"] if features is not None)
        columns["vision_features"] = [
            np.zeros((len(part), width), np.float32) if part.vision_features is None else part.vision_features
            for part in parts
        ]
    joined = {name: np.concatenate(arrays) for name, arrays in columns.items() if name != "vision_features"}
    return Sequence(**joined, vision_features=np.concatenate(columns["vision_features"]) if with_features else None)


def _blank(n: int, config: SequenceConfig, vocabulary: Vocabulary) -> Sequence:
    """The arrays of a document in which nothing is written yet: each position has neither input nor target."""
    return Sequence(
        tokens=np.full(n, vocabulary.pad, np.int32),
        vision_ids=np.zeros((n, config.taps), np.int32),
        vision_weights=np.zeros((n, config.taps), np.float32),
        vision_features=None,
        positions=np.empty((n, 3), np.float32),
        scale_index=np.zeros(n, np.int32),
        num_scales=np.zeros(n, np.int32),
        attend_start=np.zeros(n, np.int32),
        attend_end=np.arange(1, n + 1, dtype=np.int32),
        targets=np.full(n, vocabulary.pad, np.int32),
        loss_weights=np.zeros(n, np.float32),
        document=np.ones(n, np.int32),
    )


def _write_text(flat: Sequence, segment: TextSegment, time: int, start: int, config: SequenceConfig) -> None:
    """Writes text that begins at position `start`; each token is the target of the position before it, if any."""
    stop = start + len(segment.tokens)
    flat.tokens[start:stop] = segment.tokens
    flat.positions[start:stop] = np.arange(time, time + stop - start)[:, None]
    if segment.loss:
        _predict(flat, start, segment.tokens, config)


def _predict(flat: Sequence, start: int, tokens: Int[np.ndarray, "tokens"], config: SequenceConfig) -> None:
    """Gives the positions before each of the tokens from `start` on these as targets."""
    begin, stop = (max(0, place - 1) for place in (start, start + len(tokens)))  # nothing comes before position 0
    flat.targets[begin:stop] = tokens[begin + 1 - start :]
    flat.loss_weights[begin:stop] = config.text_weight


def _write_image(
    flat: Sequence, segment: ImageSegment, time: int, start: int, vocabulary: Vocabulary, config: SequenceConfig
) -> None:
    """Writes an image that begins at position `start`; <boi> is the target of the position before it."""
    schedule = segment.schedule
    for name in ("inputs", "targets"):
        if len(getattr(segment, name)) != schedule.num_tokens:
            raise UserError(
                f"image with {len(getattr(segment, name))} {name} codes: its schedule ending in grid "
                f"{schedule.final_grid} has {schedule.num_tokens}; extract it again with this schedule family"
            )
    template = _image_template(schedule, segment.context_block, config)
    stop = start + len(template.tokens)
    for name in ("vision_weights", "positions", "scale_index", "num_scales"):
        getattr(flat, name)[start:stop] = getattr(template, name)
    flat.tokens[start], flat.tokens[stop - 1] = vocabulary.boi, vocabulary.eoi
    flat.vision_ids[start + 1 : stop - 1] = segment.inputs[template.vision_ids[1:-1]]
    flat.positions[start:stop, 0] += time
    # The edges are text to the RoPE: row and column are their time too.
    flat.positions[start] = time
    flat.positions[stop - 1] = time + image_time(schedule, segment.context_block) - 1
    np.add(template.attend_end, np.int32(start), out=flat.attend_end[start:stop])
    flat.targets[start : start + schedule.num_tokens] = vocabulary.code_ids(segment.targets)
    if segment.loss:
        np.multiply(template.loss_weights, np.float32(config.vision_weight), out=flat.loss_weights[start:stop])
        _predict(flat, start, flat.tokens[start : start + 1], config)


def _image_features(segment: ImageSegment, accumulate: Accumulate) -> Float[np.ndarray, "cells C"]:
    """The accumulated inputs of an image's vision positions."""
    maps = accumulate(segment.schedule, segment.inputs)
    last = segment.schedule.num_scales
    return np.concatenate(maps[: last if segment.context_block else last - 1])


def _join_features(features: Seq[tuple[int, Float[np.ndarray, "_ C"]]], n: int) -> Float[np.ndarray, "S C"]:
    """Features from their positions on; zeros elsewhere."""
    joined = np.zeros((n, features[0][1].shape[1]), np.float32)
    for start, cells in features:
        joined[start : start + len(cells)] = cells
    return joined


@functools.cache
def _image_template(schedule: ScaleSchedule, context_block: bool, config: SequenceConfig) -> Sequence:
    """An image's arrays but for its codes and place: `vision_ids` index the flat code array, time starts at 0."""
    last = schedule.num_scales
    layouts = [scale_layout(schedule, scale, config) for scale in range(2, last + 1 + int(context_block))]
    cells = [1, *(layout.cells for layout in layouts), 1]
    n = sum(cells)

    def spread(values: Seq[Any] | np.ndarray) -> np.ndarray:
        return np.repeat(np.asarray(values), cells)

    def inner(edge: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([edge, *parts, edge])

    source_offsets = [schedule.offsets[layout.scale - 2] for layout in layouts]
    no_taps = np.zeros((1, config.taps))
    times = spread([0, *(layout.time_offset for layout in layouts), 0])
    rows = inner(np.zeros(1), [layout.rows for layout in layouts])
    columns = inner(np.zeros(1), [layout.columns for layout in layouts])
    weights = scale_weights(schedule, config.scale_reweight)
    context_weight = [0.0] if context_block else []
    return Sequence(
        tokens=np.zeros(n, np.int32),
        vision_ids=inner(no_taps, [layout.gather + o for layout, o in zip(layouts, source_offsets)]).astype(np.int32),
        vision_weights=inner(no_taps, [layout.weights for layout in layouts]).astype(np.float32),
        vision_features=None,
        positions=np.stack([times, rows, columns], axis=1).astype(np.float32),
        scale_index=spread([0, *(layout.scale for layout in layouts), 0]).astype(np.int32),
        num_scales=spread([last] * (len(cells) - 1) + [0]).astype(np.int32),
        attend_start=np.zeros(n, np.int32),
        attend_end=spread(np.cumsum(cells)).astype(np.int32),
        targets=np.zeros(n, np.int32),
        loss_weights=spread([*weights, *context_weight, 0.0]).astype(np.float32),
        document=np.ones(n, np.int32),
    )


def _padding(n: int, start: int, taps: int, features: int | None, vocabulary: Vocabulary) -> Sequence:
    """Positions that belong to no document; each sees itself alone, since every query needs one key."""
    index = np.arange(start, start + n, dtype=np.int32)
    return Sequence(
        tokens=np.full(n, vocabulary.pad, np.int32),
        vision_ids=np.zeros((n, taps), np.int32),
        vision_weights=np.zeros((n, taps), np.float32),
        vision_features=None if features is None else np.zeros((n, features), np.float32),
        positions=np.zeros((n, 3), np.float32),
        scale_index=np.zeros(n, np.int32),
        num_scales=np.zeros(n, np.int32),
        attend_start=index,
        attend_end=index + np.int32(1),
        targets=np.full(n, vocabulary.pad, np.int32),
        loss_weights=np.zeros(n, np.float32),
        document=np.zeros(n, np.int32),
    )

"""The sequence layout against rules written out independently."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextflow_jax import sequence as seq
from nextflow_jax.errors import UserError
from nextflow_jax.resize import resize_matrix
from nextflow_jax.scales import ScaleSchedule, make_schedule
from nextflow_jax.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=50, codebook_size=20, pad_multiple=16)
SQUARE = make_schedule((4, 4), (1, 2, 3, 4))
WIDE = make_schedule((2, 4), (1, 2, 4))
CONFIG = seq.SequenceConfig(input_resize="bilinear", rope_extent=8.0, scale_reweight=0.9)


def image(schedule: ScaleSchedule, seed: int = 0, **flags) -> seq.ImageSegment:
    rng = np.random.default_rng(seed)
    inputs, targets = rng.integers(0, 20, (2, schedule.num_tokens)).astype(np.int32)
    return seq.ImageSegment(schedule, inputs, targets, **flags)


def text(*ids: int, **flags) -> seq.TextSegment:
    return seq.TextSegment(np.asarray(ids, np.int32), **flags)


def dense_rule(segments: list[seq.Segment]) -> np.ndarray:
    """Who may see whom, from the prose rule: earlier positions, and all of one's own scale."""
    block_of = [0]
    for segment in segments:
        if isinstance(segment, seq.TextSegment):
            sizes = [1] * len(segment.tokens)
        else:
            sizes = [1, *segment.schedule.counts[1:]]
            sizes += [segment.schedule.counts[-1]] if segment.context_block else []
            sizes += [1]
        for size in sizes:
            block_of += [block_of[-1] + 1] * size
    block_of.append(block_of[-1] + 1)
    block = np.asarray(block_of)
    return block[None, :] <= block[:, None]


def ranges_as_mask(sequence: seq.Sequence) -> np.ndarray:
    keys = np.arange(len(sequence))
    return (sequence.attend_start[:, None] <= keys) & (keys < sequence.attend_end[:, None])


segments_strategy = st.lists(
    st.one_of(
        st.lists(st.integers(0, 49), min_size=1, max_size=5).map(lambda ids: text(*ids)),
        st.tuples(st.sampled_from([SQUARE, WIDE]), st.booleans()).map(lambda a: image(a[0], context_block=a[1])),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(segments_strategy, min_size=1, max_size=3), st.integers(0, 9))
def test_ranges_of_a_packed_row_equal_the_dense_rule(documents, padding):
    flat = [seq.flatten(segments, VOCABULARY, CONFIG) for segments in documents]
    length = sum(map(len, flat)) + padding
    row = seq.pack_row(flat, length, VOCABULARY)
    expected = np.zeros((length, length), bool)
    offset = 0
    for segments in documents:
        rule = dense_rule(segments)
        expected[offset : offset + len(rule), offset : offset + len(rule)] = rule
        offset += len(rule)
    expected[range(offset, length), range(offset, length)] = True
    np.testing.assert_array_equal(ranges_as_mask(row), expected)


@settings(max_examples=40, deadline=None)
@given(segments_strategy)
def test_length_is_predicted_without_flattening(segments):
    assert seq.sequence_length(segments) == len(seq.flatten(segments, VOCABULARY, CONFIG))


@settings(max_examples=40, deadline=None)
@given(segments_strategy, st.booleans(), st.booleans())
def test_visible_pairs_are_those_of_the_ranges(segments, bos, eos):
    flat = seq.flatten(segments, VOCABULARY, CONFIG, bos=bos, eos=eos)
    assert seq.visible_pairs(segments, bos, eos) == int((flat.attend_end - flat.attend_start).sum())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["", "a", "abc", "image"]), st.booleans()), max_size=5), st.booleans())
def test_every_text_token_and_boi_with_loss_is_predicted_by_the_position_before(drawn, edges):
    """Whatever comes before: text, nothing, an empty text, or the <eoi> of a picture."""
    segments = [image(WIDE, loss=loss) if kind == "image" else text(*map(ord, kind), loss=loss) for kind, loss in drawn]
    config = dataclasses.replace(CONFIG, text_weight=0.5)
    flat = seq.flatten(segments, Vocabulary(200, 20), config, bos=edges, eos=edges)
    with_loss = [[False]] * edges
    for segment in segments:
        if isinstance(segment, seq.TextSegment):
            with_loss.append([segment.loss] * len(segment.tokens))
        else:
            with_loss.append([segment.loss] + [False] * (seq.image_positions(WIDE) - 1))
    with_loss += [[bool(segments) and segments[-1].loss]] * edges
    predicted = np.asarray([loss for part in with_loss for loss in part], bool)
    assert len(predicted) == len(flat)
    predicts_text = (flat.num_scales[:-1] == 0) & predicted[1:]
    np.testing.assert_array_equal(flat.targets[:-1][predicts_text], flat.tokens[1:][predicts_text])
    np.testing.assert_array_equal(flat.loss_weights[:-1][predicts_text], 0.5)
    rest = (flat.num_scales == 0) & ~np.append(predicts_text, False)[: len(flat)]
    assert (flat.targets[rest] == Vocabulary(200, 20).pad).all() and not flat.loss_weights[rest].any()


def test_image_targets_inputs_and_weights():
    picture = image(SQUARE)
    flat = seq.flatten([text(1, 2, condition=True, loss=False), picture], VOCABULARY, CONFIG)
    boi = 3
    assert flat.tokens[boi] == VOCABULARY.boi
    n = SQUARE.num_tokens
    np.testing.assert_array_equal(flat.targets[boi : boi + n], VOCABULARY.code_ids(picture.targets))
    counts = np.repeat(SQUARE.counts, SQUARE.counts).astype(float)
    np.testing.assert_allclose(flat.loss_weights[boi : boi + n].sum(), n, rtol=1e-5)
    np.testing.assert_allclose(
        flat.loss_weights[boi : boi + n] * counts**0.9 / flat.loss_weights[boi], np.ones(n), rtol=1e-5
    )
    assert flat.targets[boi - 1] == VOCABULARY.boi and flat.loss_weights[boi - 1] == 1.0
    assert flat.loss_weights[0] == flat.loss_weights[1] == 0.0
    assert flat.targets[boi + n] == VOCABULARY.eos and flat.loss_weights[boi + n] == 1.0


@pytest.mark.parametrize("resize", ["nearest", "bilinear"])
def test_scale_inputs_are_the_previous_scale_resized(resize):
    picture = image(WIDE)
    config = dataclasses.replace(CONFIG, input_resize=resize)
    flat = seq.flatten([picture], VOCABULARY, config)
    table = np.random.default_rng(1).normal(size=(20, 3))
    made = np.einsum("st,stc->sc", flat.vision_weights, table[flat.vision_ids])
    position = 2
    for k in range(1, WIDE.num_scales):
        (rows_in, columns_in), (rows, columns) = WIDE.grids[k - 1], WIDE.grids[k]
        source = table[picture.inputs[WIDE.slice(k - 1)]].reshape(rows_in, columns_in, 3)
        wanted = np.einsum(
            "ab,cd,bdf->acf", resize_matrix(rows_in, rows, resize), resize_matrix(columns_in, columns, resize), source
        )
        np.testing.assert_allclose(made[position : position + rows * columns], wanted.reshape(-1, 3), atol=1e-6)
        position += rows * columns


def test_times_and_grid_coordinates():
    flat = seq.flatten([text(5), image(WIDE, context_block=True), text(6)], VOCABULARY, CONFIG)
    times = flat.positions[:, 0]
    last = WIDE.num_scales
    assert times[2] == 2 and flat.tokens[2] == VOCABULARY.boi
    eoi = np.flatnonzero(flat.tokens == VOCABULARY.eoi)[0]
    assert times[eoi] == 2 + last + 1 and times[eoi + 1] == times[eoi] + 1
    for scale in range(2, last + 1):
        at = flat.scale_index == scale
        rows, columns = WIDE.grids[scale - 1]
        assert set(times[at]) == {2 + scale - 1}
        step = 8.0 / np.sqrt(rows * columns)
        np.testing.assert_allclose(np.unique(flat.positions[at, 1]), step * (np.arange(rows) + 0.5), rtol=1e-6)
        np.testing.assert_allclose(np.unique(flat.positions[at, 2]), step * (np.arange(columns) + 0.5), rtol=1e-6)
    context = flat.scale_index == last + 1
    assert context.sum() == WIDE.counts[-1] and not flat.loss_weights[context].any()
    np.testing.assert_array_equal(flat.vision_ids[context][:, 0], image(WIDE).inputs[WIDE.slice(last - 1)])


@pytest.mark.parametrize("alpha", [0.0, 0.9])
def test_the_balance_weighs_text_against_vision_whatever_the_scale_reweight(alpha):
    balanced = dataclasses.replace(CONFIG, text_weight=0.5, vision_weight=3.0, scale_reweight=alpha)
    segments = [text(1, 2), image(SQUARE), text(3)]
    plain = seq.flatten(segments, VOCABULARY, dataclasses.replace(CONFIG, scale_reweight=alpha))
    flat = seq.flatten(segments, VOCABULARY, balanced)
    codes = flat.targets >= VOCABULARY.vision_offset
    assert codes.sum() == SQUARE.num_tokens
    np.testing.assert_allclose(flat.loss_weights[codes], 3.0 * plain.loss_weights[codes], rtol=1e-6)
    np.testing.assert_allclose(flat.loss_weights[codes].mean(), 3.0, rtol=1e-5)
    np.testing.assert_allclose(flat.loss_weights[~codes], 0.5 * plain.loss_weights[~codes], rtol=1e-6)
    assert set(plain.loss_weights[~codes]) == {0.0, 1.0}
    assert (np.ptp(plain.loss_weights[codes]) > 0) == (alpha > 0)


def test_condition_images_have_no_loss_and_dropping_keeps_them():
    segments = [image(SQUARE, loss=False), text(3, 4, loss=False, condition=True), image(SQUARE, 1)]
    kept = seq.drop_condition(segments)
    assert [type(segment) for segment in kept] == [seq.ImageSegment, seq.ImageSegment]
    flat = seq.flatten(segments, VOCABULARY, CONFIG)
    first_eoi = np.flatnonzero(flat.tokens == VOCABULARY.eoi)[0]
    assert not flat.loss_weights[:first_eoi].any()


def test_accumulated_inputs_go_through_features():
    config = dataclasses.replace(CONFIG, inputs="accumulated")

    def accumulate(schedule, codes):
        cells = [*schedule.counts[1:], schedule.counts[-1]]
        return [np.full((count, 2), number, np.float32) for number, count in enumerate(cells)]

    flat = seq.flatten([text(1), image(SQUARE)], VOCABULARY, config, accumulate=accumulate)
    for scale in range(2, SQUARE.num_scales + 1):
        assert (flat.vision_features[flat.scale_index == scale] == scale - 2).all()
    with pytest.raises(UserError, match="accumulated"):
        seq.flatten([image(SQUARE)], VOCABULARY, config)


def test_codes_of_another_schedule_are_refused():
    wrong = dataclasses.replace(image(SQUARE), schedule=WIDE)
    with pytest.raises(UserError, match="extract it again"):
        seq.flatten([wrong], VOCABULARY, CONFIG)


def test_an_overfull_row_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        seq.pack_row([seq.flatten([text(1, 2, 3)], VOCABULARY, CONFIG)], 4, VOCABULARY)

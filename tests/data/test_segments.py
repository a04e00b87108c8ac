import dataclasses

import numpy as np
import pytest

from nextflow_jax import sequence
from nextflow_jax.data.records import BrokenRecord, EncodedDocument, EncodedImage, EncodedText, decode, encode
from nextflow_jax.data.segments import check_indices, condition_pairs, count_positions, invert, to_segments
from nextflow_jax.vocabulary import Vocabulary

VOCABULARY = Vocabulary(300, 40)


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
def test_counts_give_length_and_pairs_of_every_setting(samples, context, dropped):
    for document in samples.documents(40):
        segments = to_segments(document, samples.family, response_only=True, last_scale_context=context)
        if dropped:
            segments = sequence.drop_condition(segments)
        counts = count_positions(document, samples.family)
        length = counts.plain + context * counts.context
        pairs = counts.pairs + context * counts.context_pairs
        saved = condition_pairs(np.asarray([length], np.int32), np.asarray([counts.condition], np.int32))
        flat = sequence.flatten(segments, VOCABULARY, sequence.SequenceConfig())
        assert len(flat) == length - dropped * counts.condition
        assert (flat.attend_end - flat.attend_start).sum() == pairs - dropped * saved[0]


@pytest.mark.parametrize("context", [False, True])
def test_counts_give_length_and_pairs_of_inverted_documents(samples, context):
    for document in samples.documents(40):
        counts = count_positions(document, samples.family)
        if document.task != "text_to_image":
            assert counts.inverted_context == counts.inverted_context_pairs == 0
            continue
        segments = to_segments(invert(document), samples.family, response_only=True, last_scale_context=context)
        flat = sequence.flatten(segments, VOCABULARY, sequence.SequenceConfig())
        assert len(flat) == counts.plain + context * counts.inverted_context
        pairs = counts.pairs + context * counts.inverted_context_pairs
        assert (flat.attend_end - flat.attend_start).sum() == pairs


def test_pairs_saved_by_dropping_do_not_overflow():
    length, condition = np.asarray([2**20, 10], np.int32), np.asarray([2**19, 0], np.int32)
    assert condition_pairs(length, condition).tolist() == [2**39 - 2**18 * (2**19 - 1), 0]


def test_inversion_makes_captioning_of_text_to_image(samples):
    rng = np.random.default_rng(0)
    words, picture = samples.text(rng, "prompt"), samples.image(rng, "response")
    captioning = invert(EncodedDocument("k", "text_to_image", (words, picture)))
    assert (captioning.key, captioning.task) == ("k", "image_to_text")
    shown, told = captioning.segments
    assert (shown.role, told.role) == ("prompt", "response")
    assert shown.inputs is picture.inputs and told.ids is words.ids
    segments = to_segments(captioning, samples.family, response_only=True, last_scale_context=True)
    assert [segment.loss for segment in segments] == [False, True]
    assert segments[0].context_block and not segments[1].condition


def test_a_decoded_record_flattens_like_the_original(samples):
    config = sequence.SequenceConfig(scale_reweight=0.9)
    for document in samples.documents(40):
        ours, theirs = (
            sequence.flatten(
                to_segments(d, samples.family, response_only=True, last_scale_context=True), VOCABULARY, config
            ).arrays()
            for d in (document, decode(encode(document)))
        )
        for name in ours:
            assert np.array_equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype, name


def test_roles_decide_loss_condition_and_context(samples):
    rng = np.random.default_rng(0)
    edit = samples.document(rng, "e", "edit")
    before, instruction, after = to_segments(edit, samples.family, response_only=True, last_scale_context=True)
    assert (before.loss, instruction.loss, after.loss) == (False, False, True)
    assert (before.context_block, after.context_block) == (True, False)
    assert instruction.condition
    everything = to_segments(edit, samples.family, response_only=False, last_scale_context=False)
    assert all(segment.loss for segment in everything) and not everything[0].context_block


@pytest.mark.parametrize("response_only", [False, True])
def test_a_segment_without_loss_bears_none_whatever_the_rule(samples, response_only):
    document = samples.document(np.random.default_rng(0), "e", "edit")
    first, *others = document.segments
    others[-1] = dataclasses.replace(others[-1], loss=False)
    document = dataclasses.replace(document, segments=(first, *others))
    segments = to_segments(document, samples.family, response_only=response_only, last_scale_context=False)
    assert [segment.loss for segment in segments] == [not response_only, not response_only, False]
    laid_out = sequence.flatten(segments, VOCABULARY, sequence.SequenceConfig())
    assert not laid_out.loss_weights[laid_out.num_scales > 0][-segments[-1].schedule.num_tokens :].any()


def test_a_question_about_a_picture_keeps_its_words(samples):
    rng = np.random.default_rng(0)
    question = EncodedDocument(
        "q", "image_to_text", (samples.image(rng, "prompt"), samples.text(rng, "prompt"), samples.text(rng, "response"))
    )
    segments = to_segments(question, samples.family, response_only=False, last_scale_context=False)
    assert len(sequence.drop_condition(segments)) == 3


def test_pictures_that_the_family_does_not_know_are_broken_records(samples):
    codes = np.zeros(14, np.int32)
    for size, inputs in (((16, 16), codes), ((12, 12), codes[:5])):
        document = EncodedDocument("k", "t", (EncodedImage(size, inputs, inputs, "response"),))
        with pytest.raises(BrokenRecord, match="16x16|5 codes"):
            to_segments(document, samples.family, response_only=False, last_scale_context=False)


def test_indices_outside_the_vocabulary_are_broken_records(samples):
    rng = np.random.default_rng(0)
    image = samples.image(rng, "response")
    too_large = np.full_like(image.inputs, 40)
    for segment in (
        dataclasses.replace(image, inputs=too_large),
        dataclasses.replace(image, targets=too_large),
        EncodedText(np.asarray([300], np.int32), "prompt"),
    ):
        with pytest.raises(BrokenRecord, match="outside"):
            check_indices(EncodedDocument("k", "t", (segment,)), VOCABULARY)
    check_indices(EncodedDocument("k", "t", (image,)), VOCABULARY)

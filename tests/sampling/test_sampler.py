"""Whole answers against the plain training forward: greedy tokens, log-probabilities, and no influence of the batch."""

import dataclasses

import numpy as np
import pytest

from nextflow_jax.bundle import Bundle
from nextflow_jax.errors import UserError
from nextflow_jax.sampling import batches
from nextflow_jax.sampling.batches import round_up
from nextflow_jax.sampling.requests import GeneratedImage, Request, caption, edit, text_to_image
from nextflow_jax.sampling.sampler import Sampler
from nextflow_jax.sampling.settings import SamplingSettings
from tests import tiny_models
from tests.sampling import plain

SQUARE, WIDE = tiny_models.FAMILY.sizes
GUIDED = SamplingSettings(guidance=(3.0, 1.0, 2.0), temperature=(1.0, 0.7), top_k=0)
PLAIN = SamplingSettings(temperature=1.0, top_k=0, text_temperature=1.0)
PICTURES = tiny_models.picture(0, SQUARE), tiny_models.picture(1, WIDE)


@pytest.fixture(scope="module", autouse=True)
def few_shapes():
    """One padded prompt and one cache for all batches: compiling is what takes the time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "LEAST_PROMPT", 32)
        patch.setattr(batches, "LEAST_SLOTS", 64)
        yield


@pytest.fixture(scope="module")
def bundle():
    return tiny_models.bundle()


@pytest.fixture(scope="module")
def sampler(bundle):
    return Sampler(bundle)


@pytest.fixture(scope="module")
def requests():
    """One of each task, prompts of different lengths, pictures of both sizes, guided and not."""
    return [
        text_to_image("a red sun", size=SQUARE, seed=1, settings=GUIDED),
        text_to_image("the dark side of the moon, sun and moon", size=WIDE, seed=2, settings=PLAIN),
        caption(PICTURES[0], max_text_tokens=7, seed=3, settings=PLAIN),
        edit(PICTURES[1], "make it blue", size=SQUARE, seed=4, settings=GUIDED),
        Request(("sun",), size=WIDE, begin_with_image=True, max_text_tokens=6, seed=5, settings=GUIDED),
    ]


@pytest.fixture(scope="module")
def results(sampler, requests):
    return sampler.generate(requests)


def document(bundle, request, result, condition):
    """Prompt and answer as training would see them."""
    segments = []
    for item in request.document:
        if not isinstance(item, str):
            segments.append(plain.image(bundle, item.shape[:2], picture=item))
        elif condition:
            segments.append(plain.text(bundle, item))
    vocabulary = bundle.decoder.config.vocabulary
    for segment in result.segments:
        if isinstance(segment, GeneratedImage):
            segments.append(plain.image(bundle, request.size, codes=segment.codes))
        else:
            tokens = segment.tokens[segment.tokens < vocabulary.text_size]
            segments.append(plain.TextSegment(tokens))
    return segments


def same_answer(a, b):
    assert a.finish == b.finish and len(a.segments) == len(b.segments)
    for ours, theirs in zip(a.segments, b.segments):
        drawn = [segment.codes if isinstance(segment, GeneratedImage) else segment.tokens for segment in (ours, theirs)]
        assert np.array_equal(*drawn)
        np.testing.assert_allclose(ours.log_probs, theirs.log_probs, atol=1e-4)
    for ours, theirs in zip(a.images, b.images):
        assert np.array_equal(ours, theirs)


def test_every_task_is_answered_in_its_own_form(results, requests):
    kinds = [[type(segment).__name__ for segment in result.segments] for result in results]
    assert kinds == [["GeneratedImage"]] * 2 + [
        ["GeneratedText"],
        ["GeneratedImage"],
        ["GeneratedImage", "GeneratedText"],
    ]
    assert [image.shape for result in results for image in result.images] == [
        (*request.size, 3) for request in requests if request.size
    ]
    assert results[2].finish in ("end", "text_limit") and results[0].finish == "image_limit"


def test_log_probabilities_equal_those_of_rescoring(bundle, results, requests):
    """Guidance and temperature included, by their formulas, from the training forward of the finished documents."""
    vocabulary = bundle.decoder.config.vocabulary
    guided = plain.logits(bundle, [document(bundle, *pair, True) for pair in zip(requests, results)])
    unguided = plain.logits(bundle, [document(bundle, *pair, False) for pair in zip(requests, results)])
    for i, (request, result) in enumerate(zip(requests, results)):
        prompts = [
            len(plain.layout(bundle, document(bundle, request, type(result)((), ""), on))) for on in (True, False)
        ]
        at, at_unguided = prompts
        for segment in result.segments:
            if isinstance(segment, GeneratedImage):
                schedule = bundle.codec.family.schedule(request.size)
                codes = slice(vocabulary.vision_offset, vocabulary.used)
                with_text = guided[i, at : at + schedule.num_tokens, codes]
                without = unguided[i, at_unguided : at_unguided + schedule.num_tokens, codes]
                strength = np.repeat([3, 1, 2] if request.settings is GUIDED else [1] * 3, schedule.counts)[:, None]
                temperature = np.repeat([1, 0.7, 0.7] if request.settings is GUIDED else [1] * 3, schedule.counts)[
                    :, None
                ]
                expected = plain.log_softmax((without + strength * (with_text - without)) / temperature)
                expected = expected[np.arange(len(segment.codes)), segment.codes]
                at += schedule.num_tokens + 1
                at_unguided += schedule.num_tokens + 1
            else:
                logits = guided[i, at - 1 : at - 1 + len(segment.tokens), : vocabulary.vision_offset].copy()
                logits[:, [vocabulary.pad, vocabulary.bos, vocabulary.eoi, vocabulary.boi]] = -np.inf
                expected = plain.log_softmax(logits)[np.arange(len(segment.tokens)), segment.tokens]
                if request.settings is GUIDED:  # its text is greedy
                    assert np.array_equal(segment.tokens, logits.argmax(-1))
                    expected = np.zeros_like(expected)
            np.testing.assert_allclose(segment.log_probs, expected, atol=2e-4)


def test_nothing_else_in_the_batch_changes_an_answer(sampler, results, requests):
    """Not the order, not other requests in its place (all with other seeds), not their absence."""
    shuffled = [4, 2, 0, 3, 1]
    for i, again in zip(shuffled, sampler.generate([requests[i] for i in shuffled])):
        same_answer(again, results[i])
    others = [dataclasses.replace(request, seed=request.seed + 100) for request in requests]
    others[3] = requests[1]
    again = sampler.generate(others)
    same_answer(again[3], results[1])
    same_answer(sampler.generate([requests[1]])[0], results[1])
    for i in (0, 1, 4):
        assert not np.array_equal(again[i].segments[0].codes, results[i].segments[0].codes), "the seed decides"


def test_more_requests_than_a_batch_holds_are_taken_in_turns(sampler, results, requests, monkeypatch):
    """Eight requests are five and three, the three padded to five."""
    monkeypatch.setattr(sampler, "_max_batch", 5)
    monkeypatch.setattr(batches, "round_up", lambda count, least=1: max(5, round_up(count, least)))
    again = sampler.generate([*requests, *requests[:3]])
    for ours, theirs in zip(again, [*results, *results[:3]], strict=True):
        same_answer(ours, theirs)


def test_greedy_answers_are_the_argmax_roll_out(bundle, sampler):
    """Scale by scale and token by token, each from a forward pass over all that is known so far."""
    greedy = SamplingSettings(temperature=0.0, text_temperature=0.0)
    request = Request(("blue moon",), size=WIDE, begin_with_image=True, max_text_tokens=4, settings=greedy)
    [result] = sampler.generate([request])
    vocabulary, schedule = bundle.decoder.config.vocabulary, bundle.codec.family.schedule(WIDE)
    prompt = plain.text(bundle, "blue moon")
    codes, boi = np.zeros(schedule.num_tokens, np.int32), len(plain.layout(bundle, [prompt]))
    for k in range(schedule.num_scales):
        # The codes of this scale and the finer ones are not known yet; whatever stands there must not matter.
        [logits] = plain.logits(bundle, [[prompt, plain.image(bundle, WIDE, codes=codes)]])
        part = schedule.slice(k)
        codes[part] = logits[boi : boi + len(codes), vocabulary.vision_offset : vocabulary.used][part].argmax(-1)
    assert np.array_equal(result.segments[0].codes, codes)
    written, at = [], boi + schedule.num_tokens
    allowed = [*range(vocabulary.text_size), vocabulary.eos]
    for _ in range(4):
        known = [prompt, plain.image(bundle, WIDE, codes=codes), plain.TextSegment(np.asarray(written, np.int32))]
        [logits] = plain.logits(bundle, [known])
        written.append(allowed[int(logits[at + len(written), allowed].argmax())])
        if written[-1] == vocabulary.eos:
            break
    assert result.segments[1].tokens.tolist() == written


def test_pictures_can_be_had_after_every_scale(bundle, sampler, requests, results):
    [result] = sampler.generate([requests[1]], save_scales=True)
    stages = result.segments[0].partial
    expected = bundle.codec.decode_partial(results[1].segments[0].codes[None], WIDE)
    assert len(stages) == 3 and all(np.array_equal(a, b[0]) for a, b in zip(stages, expected))
    assert np.array_equal(stages[-1], result.images[0])
    assert results[1].segments[0].partial == ()


def test_a_tokenizer_bundle_cannot_be_sampled_from():
    with pytest.raises(UserError, match="holds no decoder"):
        Sampler(Bundle(tiny_models.codec()))

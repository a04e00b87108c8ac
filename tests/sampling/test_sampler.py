"""Whole answers against the plain training forward: greedy tokens, log-probabilities, and no influence of the batch."""

import dataclasses

import numpy as np
import pytest

from nextflow_jax.bundle import Bundle
from nextflow_jax.errors import UserError
from nextflow_jax.sampling import batches
from nextflow_jax.sampling.batches import round_up
from nextflow_jax.sampling.requests import GeneratedImage, Request, Result
from nextflow_jax.sampling.sampler import Sampler
from nextflow_jax.sampling.settings import SamplingSettings
from tests import tiny_models
from tests.sampling import plain, tasks
from tests.sampling.tasks import GUIDED, RAMP, REQUESTS, SIZES, WIDE


@pytest.fixture(scope="module", autouse=True)
def few_shapes():
    patch = tasks.few_shapes()
    yield
    patch.undo()


@pytest.fixture(scope="module")
def bundle():
    return tiny_models.bundle()


@pytest.fixture(scope="module")
def sampler(bundle):
    return Sampler(bundle)


@pytest.fixture(scope="module")
def results(sampler):
    return sampler.generate(REQUESTS)


def documents(bundle, results, condition):
    """Prompts and answers as training would see them, whole or as condition dropout leaves them."""
    return [document(bundle, *each, condition) for each in zip(REQUESTS, SIZES, results)]


def document(bundle, request, size, result, condition):
    segments = []
    for item in request.document:
        if not isinstance(item, str):
            if condition or request.settings is not RAMP:
                segments.append(plain.image(bundle, item.shape[:2], picture=item))
        elif condition:
            segments.append(plain.text(bundle, item))
    vocabulary = bundle.decoder.config.vocabulary
    for segment in result.segments:
        if isinstance(segment, GeneratedImage):
            segments.append(plain.image(bundle, size, codes=segment.codes))
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


def test_every_task_is_answered_in_its_own_form(results):
    kinds = ["".join("i" if isinstance(part, GeneratedImage) else "t" for part in each.segments) for each in results]
    assert kinds == tasks.KINDS
    shapes = [result.images[0].shape[:2] if result.images else None for result in results]
    assert shapes == SIZES
    assert results[2].finish in ("end", "text_limit") and results[0].finish == "image_limit"
    assert results[6].thought and results[6].text == "" and results[2].text and results[2].thought == ""


def test_log_probabilities_equal_those_of_rescoring(bundle, results):
    """Guidance and temperature included, by their formulas, from the training forward of the finished documents."""
    vocabulary = bundle.decoder.config.vocabulary
    whole = plain.logits(bundle, documents(bundle, results, True))
    dropped = plain.logits(bundle, documents(bundle, results, False))
    nothing = [Result((), "")] * len(results)
    starts = zip(documents(bundle, nothing, True), documents(bundle, nothing, False))
    for i, (request, size, result, start) in enumerate(zip(REQUESTS, SIZES, results, starts)):
        at, at_dropped = (len(plain.layout(bundle, prompt)) for prompt in start)
        for segment in result.segments:
            if isinstance(segment, GeneratedImage):
                schedule = bundle.codec.family.schedule(size)
                codes, count = slice(vocabulary.vision_offset, vocabulary.used), schedule.num_tokens
                guided = whole[i, at : at + count, codes]
                unguided = dropped[i, at_dropped : at_dropped + count, codes]
                strength, temperature = (
                    np.repeat(table[request.settings], schedule.counts)[:, None]
                    for table in (tasks.STRENGTHS, tasks.TEMPERATURES)
                )
                expected = plain.log_softmax((unguided + strength * (guided - unguided)) / temperature)
                expected = expected[np.arange(count), segment.codes]
                fed = count + 1
            else:
                logits = whole[i, at - 1 : at - 1 + len(segment.tokens), : vocabulary.vision_offset].copy()
                logits[:, [vocabulary.pad, vocabulary.bos, vocabulary.eoi]] = -np.inf
                if not segment.is_thought:
                    logits[:, vocabulary.boi] = -np.inf
                expected = plain.log_softmax(logits)[np.arange(len(segment.tokens)), segment.tokens]
                if request.settings is GUIDED:  # its text is greedy
                    assert np.array_equal(segment.tokens, logits.argmax(-1))
                    expected = np.zeros_like(expected)
                fed = int((segment.tokens < vocabulary.text_size).sum())
            at, at_dropped = at + fed, at_dropped + fed
            np.testing.assert_allclose(segment.log_probs, expected, atol=2e-4)


def test_nothing_else_in_the_batch_changes_an_answer(sampler, results):
    """Not the order, not other requests in its place (all with other seeds), not their absence."""
    shuffled = [4, 7, 2, 0, 6, 3, 5, 1]
    for i, again in zip(shuffled, sampler.generate([REQUESTS[i] for i in shuffled])):
        same_answer(again, results[i])
    others = [dataclasses.replace(request, seed=request.seed + 100) for request in REQUESTS]
    others[3] = REQUESTS[1]
    again = sampler.generate(others)
    same_answer(again[3], results[1])
    same_answer(sampler.generate([REQUESTS[1]])[0], results[1])
    for i in (0, 1, 4, 5):
        assert not np.array_equal(again[i].segments[0].codes, results[i].segments[0].codes), "the seed decides"


def test_more_requests_than_a_batch_or_the_cache_holds_are_taken_in_turns(bundle, results, monkeypatch):
    """Eleven requests are eight and three, or four, four and three; all padded to eight."""
    config = bundle.decoder.config
    monkeypatch.setattr(batches, "round_up", lambda count, least=1: max(8 if least == 1 else 1, round_up(count, least)))
    room = batches.cache_bytes(config, batches.BatchShape(8, 64, 96, guided=True))
    for limits in ({"max_batch": 8}, {"max_batch": 4}, {"max_cache_bytes": room}):
        again = Sampler(bundle, **limits).generate([*REQUESTS, *REQUESTS[:3]])
        for ours, theirs in zip(again, [*results, *results[:3]], strict=True):
            same_answer(ours, theirs)
    with pytest.raises(UserError, match="cache of one request takes"):
        Sampler(bundle, max_cache_bytes=1000).generate(REQUESTS)


def test_a_thought_can_be_left_out_and_changes_the_picture(sampler, results):
    """The same picture with the thought in the result or not; another one without a thought."""
    quiet = dataclasses.replace(REQUESTS[6], keep_thought=False)
    rash = dataclasses.replace(REQUESTS[6], max_thought_tokens=0)
    again, without = sampler.generate([quiet, rash, *REQUESTS[:6]])[:2]
    assert [type(segment) for segment in again.segments] == [GeneratedImage]
    assert np.array_equal(again.segments[0].codes, results[6].segments[1].codes)
    assert len(without.segments) == 1 and not np.array_equal(without.segments[0].codes, again.segments[0].codes)


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


def test_pictures_can_be_had_after_every_scale(bundle, sampler, results):
    [result] = sampler.generate([REQUESTS[1]], save_scales=True)
    stages = result.segments[0].partial
    expected = bundle.codec.decode_partial(results[1].segments[0].codes[None], WIDE)
    assert len(stages) == 3 and all(np.array_equal(a, b[0]) for a, b in zip(stages, expected))
    assert np.array_equal(stages[-1], result.images[0])
    assert results[1].segments[0].partial == ()


def test_a_tokenizer_bundle_cannot_be_sampled_from():
    with pytest.raises(UserError, match="holds no decoder"):
        Sampler(Bundle(tiny_models.codec()))

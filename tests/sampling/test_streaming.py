"""Streams: every event is a part of what generate gives, in the order of its answer, while other answers go on."""

import dataclasses

import numpy as np
import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.sampling.answers import Answer
from nextflow_jax.sampling.engine import Written
from nextflow_jax.sampling.prompts import make_prompts
from nextflow_jax.sampling.requests import GeneratedImage, text_to_image
from nextflow_jax.sampling.sampler import Sampler
from nextflow_jax.sampling.streaming import ImageEvent, PartialImageEvent, ResultEvent, TextEvent, stream_batch
from tests import tiny_models
from tests.sampling import tasks
from tests.sampling.tasks import REQUESTS


@pytest.fixture(scope="module", autouse=True)
def few_shapes():
    patch = tasks.few_shapes()
    yield
    patch.undo()


@pytest.fixture(scope="module")
def sampler():
    return Sampler(tiny_models.bundle())


@pytest.fixture(scope="module")
def results(sampler):
    return sampler.generate(REQUESTS, save_scales=True)


@pytest.fixture(scope="module")
def events(sampler):
    return list(sampler.stream(REQUESTS, text_tokens=2))


def test_joined_events_are_the_results(events, results):
    for i, expected in enumerate(results):
        ours = [event for event in events if event.request == i]
        assert isinstance(ours[-1], ResultEvent) and sum(isinstance(event, ResultEvent) for event in ours) == 1
        told = ours[-1].result
        assert told.finish == expected.finish and len(told.segments) == len(expected.segments)
        for segment, theirs in enumerate(expected.segments):
            here = [event for event in ours[:-1] if event.segment == segment]
            mine = told.segments[segment]
            np.testing.assert_allclose(mine.log_probs, theirs.log_probs, atol=1e-4)
            if isinstance(theirs, GeneratedImage):
                assert np.array_equal(mine.codes, theirs.codes)
                *unfinished, finished = here
                assert isinstance(finished, ImageEvent) and np.array_equal(finished.image.pixels, theirs.pixels)
                assert [event.scale for event in unfinished] == [1, 2]
                assert {event.num_scales for event in unfinished} == {3}
                for event, stage in zip(unfinished, theirs.partial):
                    assert isinstance(event, PartialImageEvent) and np.array_equal(event.pixels, stage)
            else:
                assert np.array_equal(mine.tokens, theirs.tokens)
                assert all(isinstance(event, TextEvent) and event.is_thought == theirs.is_thought for event in here)
                assert "".join(event.text for event in here) == mine.text == theirs.text


def test_segments_of_an_answer_come_in_order(events):
    for i in range(len(REQUESTS)):
        places = [event.segment for event in events if event.request == i and not isinstance(event, ResultEvent)]
        assert places == sorted(places)


def test_text_comes_in_pieces_while_others_draw(events):
    """The caption is written while the pictures of other requests are between their scales."""
    kinds = [(type(event).__name__, event.request) for event in events]
    texts = [place for place, kind in enumerate(kinds) if kind == ("TextEvent", 2)]
    scales = [place for place, (kind, _) in enumerate(kinds) if kind == "PartialImageEvent"]
    assert len(texts) > 1 and any(texts[0] < place < texts[-1] for place in scales)


def test_a_thought_that_is_not_kept_is_not_told(sampler, results):
    quiet = dataclasses.replace(REQUESTS[6], keep_thought=False)
    events = [event for event in sampler.stream([quiet, *REQUESTS[:6], REQUESTS[7]]) if event.request == 0]
    assert not any(isinstance(event, TextEvent) for event in events)
    assert {event.segment for event in events[:-1]} == {0}
    assert np.array_equal(events[-1].result.images[0], results[6].images[0])


def test_half_characters_wait_for_their_other_half():
    """Each byte of these is a token of its own; joined, the events are the text, and none ends within a character."""
    tokenizer = tiny_models.text_tokenizer()
    written = "日本 é \N{GRINNING FACE}"
    tokens = np.asarray(tokenizer.encode(written), np.int32)
    assert len(tokens) > len(written)
    [prompt] = make_prompts([tasks.REQUESTS[2]], tiny_models.bundle())
    answer = Answer.start(prompt)
    answer.text_left = len(tokens)

    def steps():
        for token in tokens:
            answer.add_text(token[None], np.zeros(1, np.float32), 0)
            yield Written([0])

    events = stream_batch([answer], steps(), 0, lambda ids: tokenizer.decode(ids.tolist()))
    texts = [event.text for event in events if isinstance(event, TextEvent)]
    assert "".join(texts) == written and "\N{REPLACEMENT CHARACTER}" not in "".join(texts) and len(texts) > 3


def test_what_cannot_be_answered_is_refused_at_the_call(sampler):
    with pytest.raises(UserError, match="the prompt is empty"):
        sampler.stream([text_to_image("")])

"""Tasks as requests: documents laid out as training shows them, caps that fit."""

import numpy as np

from nextflow_jax.sampling.requests import (
    GeneratedImage,
    GeneratedText,
    Result,
    answer,
    caption,
    edit,
    frames,
    in_context,
    story,
    text_to_image,
    think_then_draw,
)
from tests import tiny_models

A, B, C = (tiny_models.picture(seed) for seed in range(3))


def parts(request):
    """The document with pictures by their letter."""
    letters = {id(A): "A", id(B): "B", id(C): "C"}
    return [item if isinstance(item, str) else letters[id(item)] for item in request.document]


def test_drawing_tasks_give_one_picture_and_nothing_else():
    requests = {
        "text_to_image": text_to_image("sun", instruction="draw", seed=3),
        "edit": edit(A, "make it blue", seed=3),
        "edits": edit([A, B], "put both together", seed=3),
        "in_context": in_context([(A, B)], C, instruction="go on", seed=3),
        "think": think_then_draw([A, "make it warm"], instruction="think first", max_thought_tokens=9, seed=3),
    }
    assert {name: parts(request) for name, request in requests.items()} == {
        "text_to_image": ["draw", "sun"],
        "edit": ["A", "make it blue"],
        "edits": ["A", "B", "put both together"],
        "in_context": ["go on", "A", "B", "C"],
        "think": ["think first", "A", "make it warm"],
    }
    for name, request in requests.items():
        assert request.begin_with_image and request.max_images == 1 and request.max_text_tokens == 0
        assert request.seed == 3 and request.max_thought_tokens == (9 if name == "think" else 0)
    assert think_then_draw("sun", keep_thought=False).document == ("sun",)
    assert parts(text_to_image("sun")) == ["sun"]


def test_telling_tasks_draw_nothing():
    requests = [caption(A), caption(A, instruction="in German"), answer(A, "what?"), answer([A, B], "why?", seed=2)]
    assert [parts(request) for request in requests] == [["A"], ["A", "in German"], ["A", "what?"], ["A", "B", "why?"]]
    for request in requests:
        assert not request.begin_with_image and request.max_images == 0 and request.max_text_tokens > 0


def test_stories_and_frames_leave_the_turns_to_the_model():
    told, shown = story("once", max_images=2, max_text_tokens=99), frames([("one", A), ("two", B)], max_images=2)
    assert parts(told) == ["once"] and parts(shown) == ["one", "A", "two", "B"]
    for request in (told, shown):
        assert not request.begin_with_image and request.max_images == 2 and request.max_text_tokens > 0
    assert shown.size == "condition" and frames([("one", A)], size="square").size == "square"


def test_a_result_keeps_thoughts_out_of_its_text():
    tokens, log_probs = np.zeros(1, np.int32), np.zeros(1, np.float32)
    thought, text = (GeneratedText(words, tokens, log_probs, words == "hm") for words in ("hm", "sun"))
    result = Result((thought, GeneratedImage(A, tokens, log_probs), text), "end")
    assert (result.thought, result.text) == ("hm", "sun") and result.images[0] is A

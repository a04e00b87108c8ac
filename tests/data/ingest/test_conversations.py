"""Turns of a conversation to prompts without a loss and responses with one."""

import pytest

from nextflow_jax.data.corpus.raw import RawImage, RefusedDocument
from nextflow_jax.data.ingest.config import SourceConfig
from nextflow_jax.data.ingest.conversations import converse
from tests.data.ingest.conftest import encode_picture

A, B = (encode_picture(seed) for seed in (1, 2))


def said(*turns):
    return [{"from": speaker, "value": value} for speaker, value in turns]


def shape(segments):
    names = {A: "A", B: "B"}
    return [(one.role[0], one.loss, names[one.data] if isinstance(one, RawImage) else one.text) for one in segments]


@pytest.mark.parametrize(
    "turns, pictures, task, expected",
    [
        (
            said(("human", "<image>\nWhat is this?"), ("gpt", "A cat.")),
            [A],
            "image_to_text",
            [("p", False, "A"), ("p", False, "What is this?"), ("r", True, "A cat.")],
        ),
        (
            said(("human", "Which?\n<image> or\n<image>"), ("gpt", " The first.\n")),
            [A, B],
            "interleaved",
            [
                ("p", False, "Which?"),
                ("p", False, "A"),
                ("p", False, "or"),
                ("p", False, "B"),
                ("r", True, " The first.\n"),
            ],
        ),
        (
            said(("system", "Be brief."), ("human", "Hi"), ("gpt", "Hello"), ("human", "Bye"), ("gpt", "See you")),
            [],
            "text",
            [
                ("p", False, "Be brief."),
                ("p", False, "Hi"),
                ("r", True, "Hello"),
                ("p", False, "Bye"),
                ("r", True, "See you"),
            ],
        ),
        (
            said(("human", "<image>"), ("gpt", "A cat."), ("human", "Sure?"), ("gpt", "Yes.")),
            [B],
            "interleaved",
            [("p", False, "B"), ("r", True, "A cat."), ("p", False, "Sure?"), ("r", True, "Yes.")],
        ),
        (
            said(("human", "Draw a cat"), ("gpt", "<image>")),
            [A],
            "interleaved",
            [("p", False, "Draw a cat"), ("r", True, "A")],
        ),
    ],
)
def test_turns(turns, pictures, task, expected):
    found, segments = converse(turns, pictures, SourceConfig())
    assert (found, shape(segments)) == (task, expected)


@pytest.mark.parametrize(
    "turns, pictures, reason",
    [
        (said(("human", "<image>"), ("gpt", "A cat.")), [], "bad record"),
        (said(("human", "<image>"), ("gpt", "A cat.")), [A, B], "bad record"),
        (said(("human", "What?"), ("gpt", "A cat.")), [A], "bad record"),
        (said(("robot", "What?")), [], "unknown task"),
        (said((["gpt"], "What?")), [], "unknown task"),
        (said(("gpt", None)), [], "bad record"),
        (["What?"], [], "bad record"),
    ],
)
def test_what_is_refused(turns, pictures, reason):
    with pytest.raises(RefusedDocument) as refused:
        converse(turns, pictures, SourceConfig())
    assert refused.value.reason == reason

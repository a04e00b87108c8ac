"""The loop over phases with a model that says what a script tells it to: who continues, who stops, and why."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.sampling import batches
from nextflow_jax.sampling.answers import Answer
from nextflow_jax.sampling.engine import Engine, Pace
from nextflow_jax.sampling.phases import Phases
from nextflow_jax.sampling.prompts import make_prompts
from nextflow_jax.sampling.requests import Request
from tests import tiny_models

VOCABULARY = tiny_models.decoder_part().config.vocabulary
BOI, EOS = VOCABULARY.boi, VOCABULARY.eos
CODES = tiny_models.FAMILY.schedule((12, 12)).num_tokens
PROMPT = "a red sun"
START = 1 + len(tiny_models.text_tokenizer().encode(PROMPT))
IMAGE = CODES + 1
"""Positions a picture takes: <boi>, the finer scales, <eoi>."""
ROWS = 3
WHOLE = Pace()


class Scripted(Phases):
    """The text written at a length is what the script's column of that length says; pictures are the model's."""

    script = np.zeros((ROWS, 128), np.int32)

    def _draw_text(self, head, rows, draws, limits):
        shape = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
        tokens = jax.pure_callback(lambda at: self.script[np.arange(ROWS), np.asarray(at)], shape, rows.length)
        tokens = jnp.where((tokens == BOI) & (rows.length > limits.open_until), 7, tokens)
        return tokens, -rows.length.astype(jnp.float32)


@functools.cache
def scripted_engine():
    bundle = tiny_models.bundle()
    engine = Engine(bundle)
    engine._phases = Scripted(bundle.decoder.config, bundle.decoder.sequence)
    return engine


@pytest.fixture(autouse=True)
def one_shape_for_all(monkeypatch):
    """So that the phases compile once for this file."""
    monkeypatch.setattr(batches, "LEAST_PROMPT", 64)
    monkeypatch.setattr(batches, "LEAST_SLOTS", 128)


def run(scripts, max_positions=96, pace=WHOLE, **options):
    """Answers to one prompt a script; a script maps an offset from the prompt's end to what is written there."""
    engine = scripted_engine()
    engine._phases.script = np.full((ROWS, 128), 3, np.int32)
    for row in range(ROWS):
        for offset, token in scripts[min(row, len(scripts) - 1)].items():
            engine._phases.script[row, START + offset] = token
    bundle = tiny_models.bundle(max_positions=max_positions)
    prompts = make_prompts([Request((PROMPT,), **options)] * ROWS, bundle)
    answers = [Answer.start(prompt) for prompt in prompts]
    for _ in engine.steps(answers, pace):
        pass
    return answers[: len(scripts)]


def kinds(answer):
    return ["image" if piece.is_image else piece.tokens.tolist() for piece in answer.pieces]


def test_text_and_pictures_alternate_until_the_document_ends():
    story = {2: BOI, 2 + IMAGE + 1: BOI, 2 + 2 * IMAGE + 1: EOS}
    short = {1: EOS}
    answers = run([story, short, {0: BOI, IMAGE: EOS}], max_images=2, max_text_tokens=9)
    assert kinds(answers[0]) == [[3, 3, BOI], "image", [3, BOI], "image", [EOS]]
    assert kinds(answers[1]) == [[3, EOS]]
    assert kinds(answers[2]) == [[BOI], "image", [EOS]]
    assert {answer.finish for answer in answers} == {"end"}
    assert answers[0].pieces[0].log_probs.tolist() == [-START, -START - 1, -START - 2]
    assert all(len(piece.tokens) == CODES for answer in answers for piece in answer.pieces if piece.is_image)


def test_caps_end_an_answer_and_say_so():
    answers = run([{0: BOI, IMAGE: BOI}, {3: BOI}], max_images=1, max_text_tokens=4)
    assert kinds(answers[0]) == [[BOI], "image", [7, 3, 3, 3]], "a second picture is not opened"
    assert kinds(answers[1]) == [[3, 3, 3, BOI], "image", [3]]
    assert [answer.finish for answer in answers] == ["text_limit", "text_limit"]


@pytest.mark.parametrize(("max_images", "finish"), [(1, "image_limit"), (2, "text_limit")])
def test_a_picture_ends_an_answer_without_text(max_images, finish):
    [answer] = run([{}], max_images=max_images, max_text_tokens=0, begin_with_image=True)
    assert kinds(answer) == ["image"] and answer.finish == finish


def test_positions_bound_everything():
    room = 6
    [text] = run([{}], max_positions=START + room, max_text_tokens=50)
    assert kinds(text) == [[3] * room] and text.finish == "positions"
    [cut] = run([{}], max_positions=START + IMAGE, max_text_tokens=50, begin_with_image=True)
    assert kinds(cut) == ["image"] and cut.finish == "positions"
    [narrow] = run([{1: BOI}], max_positions=START + CODES, max_text_tokens=3)
    assert kinds(narrow) == [[3, 7, 3]], "no picture is opened that has no room"
    [wide] = run([{1: BOI}], max_positions=START + 1 + CODES, max_text_tokens=3)
    assert kinds(wide) == [[3, BOI], "image"] and wide.finish == "positions"


def test_a_thought_comes_before_its_picture_in_any_case():
    """It ends where the model opens the picture or would end, or when it is used up; what follows has its own cap."""
    thought = {"begin_with_image": True, "max_thought_tokens": 3}
    opened, ended, cut = run([{1: BOI}, {2: EOS}, {3 + IMAGE + 1: EOS}], max_text_tokens=9, **thought)
    assert kinds(opened) == [[3, BOI], "image", [3] * 9] and opened.finish == "text_limit"
    assert kinds(ended)[:2] == [[3, 3, EOS], "image"]
    assert kinds(cut) == [[3, 3, 3], "image", [3, EOS]] and cut.finish == "end"
    assert [piece.is_thought for piece in cut.pieces if not piece.is_image] == [True, False]
    [silent] = run([{}], max_text_tokens=0, **thought)
    assert kinds(silent) == [[3, 3, 3], "image"] and silent.finish == "image_limit"


def test_a_mark_ends_an_answer_and_is_no_part_of_its_text():
    tokenizer = tiny_models.text_tokenizer()
    mark = next(i for i in range(tokenizer.size) if tokenizer.encode(tokenizer.decode([i])) == [i])
    name, thinking = tokenizer.decode([mark]), {"begin_with_image": True, "max_thought_tokens": 5}
    [ended] = run([{1: mark}], end_mark=name)
    [thought] = run([{1: mark}], end_mark=name, max_text_tokens=0, **thinking)
    assert kinds(ended) == [[3, mark]] and ended.finish == "end"
    assert kinds(thought) == [[3, mark], "image"]
    assert ended.pieces[0].words.tolist() == thought.pieces[0].words.tolist() == [3]
    [other] = run([{1: mark}], max_text_tokens=3)
    assert kinds(other) == [[3, mark, 3]]


def test_a_thought_leaves_room_for_its_picture():
    options = {"begin_with_image": True, "max_thought_tokens": 50, "max_text_tokens": 5}
    [cut] = run([{}], max_positions=START + 2 + CODES, **options)
    assert kinds(cut) == [[3, 3], "image"] and cut.finish == "positions"
    [none] = run([{}], max_positions=START + CODES, **options)
    assert kinds(none) == ["image"] and none.finish == "positions"


def test_the_pace_changes_nothing():
    """Text two tokens at a time and pictures scale by scale, some rows ahead of others."""
    scripts = [{2: BOI, 2 + IMAGE + 1: BOI, 2 + 2 * IMAGE + 1: EOS}, {1: EOS}, {0: BOI, IMAGE + 3: EOS}]
    whole = run(scripts, max_images=2, max_text_tokens=9)
    slow = run(scripts, max_images=2, max_text_tokens=9, pace=Pace(2, by_scale=True))
    for ours, theirs in zip(slow, whole, strict=True):
        assert kinds(ours) == kinds(theirs) and ours.finish == theirs.finish and ours.length == theirs.length
        for mine, other in zip(ours.pieces, theirs.pieces):
            assert np.array_equal(mine.tokens, other.tokens)
            np.testing.assert_allclose(mine.log_probs, other.log_probs, atol=1e-5)

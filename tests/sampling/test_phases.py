"""Cached decoding gives the logits of the training forward: every scale, text before and after, every kind of input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.models.cache import make_cache
from nextflow_jax.models.decoder import Decoder
from nextflow_jax.models.head import logits_of
from nextflow_jax.sampling.engine import Engine
from nextflow_jax.sampling.phases import Draws, Phases, TextLimits, _keys_at
from nextflow_jax.sampling.prompts import make_prompts
from nextflow_jax.sampling.requests import Request
from nextflow_jax.sampling.steps import Rows
from tests import tiny_models
from tests.sampling import plain

SQUARE, WIDE = tiny_models.FAMILY.sizes
AFTER = "moon"


class Teacher(Phases):
    """Takes given codes instead of drawing, and keeps the logits that they would be drawn from."""

    def start(self, codes):
        self.codes, self.logits = codes, []
        # Traced with the caller, which takes the logits.
        self.draw_scale, self.prepare_image = self._draw_scale, lambda *_: None

    def _draw_codes(self, head, hidden, rows, draws, guided):
        taken = sum(logits.shape[1] for logits in self.logits)
        self.logits.append(logits_of(hidden, head))
        codes = self.codes[:, taken : taken + hidden.shape[1]]
        return codes, jnp.zeros(codes.shape)


def neutral_draws(batch, scales):
    ones, zeros = jnp.ones((batch, scales)), jnp.zeros((batch, scales))
    return Draws(jax.random.split(jax.random.key(0), batch), ones, ones, zeros, ones)


def teacher_forced(bundle, prompts, codes, after):
    """Logits while two rows draw, one after the other, each a picture of its own size, and then read a text."""
    engine, part = Engine(bundle), bundle.decoder
    teacher = Teacher(part.config, part.sequence)

    @jax.jit
    def run(weights, rows):
        drawn, texts = [], []
        head = teacher._head(weights, Decoder.text_head)
        for i, prompt in enumerate(prompts):
            teacher.start(jnp.broadcast_to(codes[i], (2, len(codes[i]))))
            active = jnp.arange(2) == i
            rows, *_ = teacher.draw_image(
                weights, rows, neutral_draws(2, prompt.schedule.num_scales), active, prompt.schedule
            )
            drawn.append(jnp.concatenate(teacher.logits, axis=1)[i])
        rows = teacher._close_image(weights, rows, jnp.ones(2, bool))
        texts.append(logits_of(rows.last[:, None], head))
        for token in after:
            rows = teacher._feed_token(weights, rows, jnp.full(2, token, jnp.int32), jnp.ones(2, bool))
            texts.append(logits_of(rows.last[:, None], head))
        return drawn, jnp.concatenate(texts, axis=1)

    return run(engine._weights, engine._read_prompts(prompts))


@pytest.mark.parametrize("inputs", ["residual", "accumulated"])
def test_cached_logits_equal_those_of_the_training_forward(inputs):
    bundle = tiny_models.bundle(inputs=inputs, last_scale_context=True, max_positions=plain.LENGTH)
    pictures = tiny_models.picture(0, SQUARE), tiny_models.picture(1, WIDE)
    requests = [
        Request(("a red sun", pictures[0], "make it blue"), size=SQUARE),
        Request((pictures[1], "moon"), size=WIDE),
    ]
    prompts = make_prompts(requests, bundle)
    generator = np.random.default_rng(0)
    codes = [generator.integers(0, 24, prompt.schedule.num_tokens).astype(np.int32) for prompt in prompts]
    after = bundle.text_tokenizer.encode(AFTER)
    drawn, texts = teacher_forced(bundle, prompts, codes, after)

    before = [
        [
            plain.text(bundle, "a red sun"),
            plain.image(bundle, SQUARE, picture=pictures[0], context=True),
            plain.text(bundle, "make it blue"),
        ],
        [plain.image(bundle, WIDE, picture=pictures[1], context=True), plain.text(bundle, "moon")],
    ]
    documents = [
        [*segments, plain.image(bundle, size, codes=row), plain.text(bundle, AFTER)]
        for segments, size, row in zip(before, (SQUARE, WIDE), codes)
    ]
    expected = plain.logits(bundle, documents)
    vocabulary = bundle.decoder.config.vocabulary
    for i, prompt in enumerate(prompts):
        boi, eoi = len(prompt.guided), len(prompt.guided) + prompt.schedule.num_tokens
        scales = expected[i, boi:eoi, vocabulary.vision_offset : vocabulary.used]
        for k in range(prompt.schedule.num_scales):
            part = prompt.schedule.slice(k)
            np.testing.assert_allclose(np.asarray(drawn[i])[part], scales[part], atol=1e-4, err_msg=f"scale {k + 1}")
        follows = expected[i, eoi : eoi + 1 + len(after), : vocabulary.vision_offset]
        np.testing.assert_allclose(texts[i], follows, atol=1e-4)
    assert np.abs(expected).max() > 1


def test_text_draws_are_limited_to_what_may_come_next():
    """The head wants every special more than any text; pad, bos, eoi never come, <boi> only where it may, nor do text
    ids that the tokenizer does not have, which it wants too."""
    part = tiny_models.decoder_part()
    phases, vocabulary = Phases(part.config, part.sequence), part.config.vocabulary
    head = np.zeros((2, vocabulary.vision_offset), np.float32)
    wishes = {
        vocabulary.text_size - 1: 9,
        vocabulary.pad: 9,
        vocabulary.bos: 9,
        vocabulary.eoi: 9,
        vocabulary.boi: 5,
        vocabulary.eos: 3,
        17: 1,
    }
    for token, wish in wishes.items():
        head[0, token] = wish
    rows = Rows(
        cache=make_cache(part.config, 3, 8).rewind(jnp.asarray([4, 5, 6])),
        time=jnp.zeros(3),
        last=jnp.tile(jnp.asarray([[1.0, 0.0]]), (3, 1)),
    )
    draws = neutral_draws(3, 1)._replace(temperature=jnp.zeros((3, 1)))
    limits = TextLimits(
        jnp.ones(3, jnp.int32),
        jnp.asarray([-1, 5, 5]),
        jnp.full(3, vocabulary.eos),
        jnp.int32(vocabulary.text_size - 1),
    )
    tokens, log_probs = jax.jit(phases._draw_text)(jnp.asarray(head), rows, draws, limits)
    assert tokens.tolist() == [vocabulary.eos, vocabulary.boi, vocabulary.eos]
    assert log_probs.tolist() == [0, 0, 0]


def test_no_two_draws_share_a_key():
    keys = [_keys_at(jax.vmap(jax.random.key)(jnp.arange(6)), jnp.full(6, length)) for length in range(9)]
    data = np.concatenate([jax.random.key_data(key) for key in keys])
    assert len(np.unique(data, axis=0)) == 6 * 9


def test_scale_by_scale_a_picture_is_the_same():
    """As streaming draws it; rows that don't draw stay where they were."""
    bundle = tiny_models.bundle()
    engine = Engine(bundle)
    prompts = make_prompts([Request(("sun",), size=SQUARE), Request(("a red sun",), size=WIDE)], bundle)
    draws, active = neutral_draws(2, 3), np.asarray([False, True])
    _, codes, log_probs = engine._phases.draw_image(
        engine._weights, engine._read_prompts(prompts), draws, active, schedule=prompts[1].schedule
    )
    rows, drawing, scales = engine._read_prompts(prompts), None, []
    before = np.asarray(rows.length), np.asarray(rows.time)
    for k in range(3):
        rows, drawing, scale_log_probs = engine._phases.draw_scale(
            engine._weights, rows, drawing, draws, active, schedule=prompts[1].schedule, k=k
        )
        scales.append((drawing.codes, scale_log_probs))
    assert np.array_equal(np.concatenate([drawn for drawn, _ in scales], axis=1), codes)
    assert np.array_equal(np.concatenate([drawn for _, drawn in scales], axis=1), log_probs)
    assert (np.asarray(rows.length) - before[0]).tolist() == [0, prompts[1].schedule.num_tokens]
    assert (np.asarray(rows.time) - before[1]).tolist() == [0, 3]

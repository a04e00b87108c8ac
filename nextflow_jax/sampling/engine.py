"""The loop over phases: a batch of prompts is read, then text and pictures alternate until every answer is finished."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from nextflow_jax import sequence
from nextflow_jax.bundle import Bundle
from nextflow_jax.models.decoder import DecoderInputs
from nextflow_jax.sampling.guidance import needs_guidance
from nextflow_jax.sampling.phases import END, OPEN_IMAGE, Draws, TextLimits, Weights, make_phases
from nextflow_jax.sampling.prompts import Prompt
from nextflow_jax.sampling.settings import per_scale
from nextflow_jax.sampling.steps import Rows, ScaleFeatures
from nextflow_jax.scales import ScaleSchedule

FINISH_END, FINISH_TEXT, FINISH_IMAGES, FINISH_POSITIONS = "end", "text_limit", "image_limit", "positions"

LEAST_PROMPT, LEAST_SLOTS = 16, 128
"""Smallest padded prompt and cache, in positions: below, one compiled program serves all."""


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """What one phase added to an answer: codes of a picture, or unified ids of text with the closing special."""

    is_image: bool
    tokens: Int[np.ndarray, "n"]
    log_probs: Float[np.ndarray, "n"]


@dataclasses.dataclass(eq=False)
class Answer:
    """An answer as it grows."""

    prompt: Prompt
    length: int
    """Positions of the row so far."""
    text_left: int
    images_left: int
    opening: bool
    """Whether a picture comes next."""
    finish: str = ""
    """Why it ended; empty while it has not."""
    pieces: list[Piece] = dataclasses.field(default_factory=list)

    @property
    def room(self) -> int:
        """Positions left."""
        return self.prompt.capacity - self.length

    def add_text(self, piece: Piece, stop: int) -> None:
        """Takes what `write_text` wrote; a closing special was not fed to the decoder."""
        fed = len(piece.tokens) - (stop != 0)
        self.pieces.append(piece)
        self.length += fed
        self.text_left -= fed
        if stop == OPEN_IMAGE:
            self.opening = True
        elif stop == END:
            self.finish = FINISH_END
        else:
            self.finish = FINISH_POSITIONS if self.text_left else FINISH_TEXT

    def add_image(self, piece: Piece) -> None:
        """Takes a picture; `<eoi>` was not fed to the decoder."""
        self.pieces.append(piece)
        self.length += len(piece.tokens)
        self.images_left -= 1
        self.opening = False
        if self.text_left == 0:
            self.finish = FINISH_TEXT if self.images_left else FINISH_IMAGES
        elif self.room < 2:
            self.finish = FINISH_POSITIONS


class Engine:
    """Runs batches of prompts through one decoder."""

    def __init__(self, bundle: Bundle) -> None:
        part = bundle.decoder
        features = None
        if part.sequence.inputs == "accumulated":
            features = ScaleFeatures(bundle.codec.codebook, bundle.codec.refinement)
        self._weights = jax.device_put(Weights(part.variables, features))
        self._phases = make_phases(part.config, part.sequence)
        self._vocabulary = part.config.vocabulary

    def run(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """The answers to a batch of prompts. Everything is padded to sizes that recur: few compilations."""
        padding = round_up(len(prompts)) - len(prompts)
        answers = [_start(prompt) for prompt in [*prompts, *prompts[:1] * padding]]
        for answer in answers[len(prompts) :]:
            answer.finish = "padding"
        rows = self._read_prompts([answer.prompt for answer in answers])
        seeds = jnp.asarray([answer.prompt.request.seed for answer in answers], jnp.uint32)
        key = jax.vmap(jax.random.key)(seeds)
        while not all(answer.finish for answer in answers):
            rows = self._write_text(rows, answers, key)
            rows = self._draw_images(rows, answers, key)
        return answers[: len(prompts)]

    def _read_prompts(self, prompts: Sequence[Prompt]) -> Rows:
        guided = needs_guidance([prompt.settings for prompt in prompts])
        layouts = [prompt.guided for prompt in prompts]
        if guided:
            layouts += [prompt.unguided for prompt in prompts]
        length = round_up(max(map(len, layouts)), LEAST_PROMPT)
        padded = [sequence.pack_row([layout], length, self._vocabulary).arrays() for layout in layouts]
        features = self._weights.features
        if features is not None:
            _fill_features(padded, length, features.codebook.shape[1])
        return self._phases.read_prompt(
            self._weights,
            DecoderInputs.of({name: np.stack([arrays[name] for arrays in padded]) for name in padded[0]}),
            np.asarray([len(layout) for layout in layouts], np.int32),
            np.asarray([layout.positions[-1, 0] + 1 for layout in layouts], np.float32),
            slots=round_up(max(length, *(prompt.longest for prompt in prompts)), LEAST_SLOTS),
            guided=guided,
        )

    def _write_text(self, rows: Rows, answers: Sequence[Answer], key: Key[Array, "B"]) -> Rows:
        """Lets every answer that is not about to draw write until it opens a picture, ends, or meets a limit."""
        active = [not answer.finish and not answer.opening for answer in answers]
        if not any(active):
            return rows
        limits = [min(answer.text_left, answer.room) * on for answer, on in zip(answers, active)]
        open_until = [
            answer.prompt.capacity - answer.prompt.schedule.num_tokens if answer.images_left else -1
            for answer in answers
        ]
        rows, text = self._phases.write_text(
            self._weights,
            rows,
            _text_draws(answers, key),
            TextLimits(np.asarray(limits, np.int32), np.asarray(open_until, np.int32)),
            space=round_up(max(limits) + 1, LEAST_PROMPT),
        )
        tokens, log_probs, count, stop = map(np.asarray, text)
        for i, answer in enumerate(answers):
            if active[i]:
                answer.add_text(Piece(False, tokens[i, : count[i]], log_probs[i, : count[i]]), int(stop[i]))
        return rows

    def _draw_images(self, rows: Rows, answers: Sequence[Answer], key: Key[Array, "B"]) -> Rows:
        """Draws the pictures that were opened, a call a schedule, and closes those after which text may follow."""
        drawing = [answer for answer in answers if answer.opening and not answer.finish]
        for schedule in dict.fromkeys(answer.prompt.schedule for answer in drawing):
            active = [answer in drawing and answer.prompt.schedule == schedule for answer in answers]
            rows, codes, log_probs = self._phases.draw_image(
                self._weights, rows, _picture_draws(answers, key, schedule), np.asarray(active), schedule=schedule
            )
            codes, log_probs = np.asarray(codes), np.asarray(log_probs)
            for i, answer in enumerate(answers):
                if active[i]:
                    answer.add_image(Piece(True, codes[i], log_probs[i]))
        closing = [answer in drawing and not answer.finish for answer in answers]
        if not any(closing):
            return rows
        for answer, on in zip(answers, closing):
            answer.length += on
        return self._phases.close_image(self._weights, rows, np.asarray(closing))


def round_up(count: int, least: int = 1) -> int:
    """The next of the sizes least, ..., 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, ...: at most a quarter is wasted."""
    step = max(1, 2 ** (max(count - 1, 1).bit_length() - 3))
    return max(least, -(-count // step) * step)


def _start(prompt: Prompt) -> Answer:
    request = prompt.request
    return Answer(
        prompt, len(prompt.guided), request.max_text_tokens, request.max_images, opening=request.begin_with_image
    )


def _text_draws(answers: Sequence[Answer], key: Key[Array, "B"]) -> Draws:
    settings = [answer.prompt.settings for answer in answers]
    names = ("text_temperature", "text_top_k", "text_top_p")
    columns = (np.asarray([[getattr(item, name)] for item in settings], np.float32) for name in names)
    return Draws(key, np.ones((len(settings), 1), np.float32), *columns)


def _picture_draws(answers: Sequence[Answer], key: Key[Array, "B"], schedule: ScaleSchedule) -> Draws:
    settings = [answer.prompt.settings for answer in answers]
    names = ("guidance", "temperature", "top_k", "top_p")
    rows = ([per_scale(getattr(item, name), schedule.num_scales) for item in settings] for name in names)
    return Draws(key, *(np.stack(values) for values in rows))


def _fill_features(padded: Sequence[dict[str, np.ndarray]], length: int, width: int) -> None:
    """Prompts without pictures have no feature array; a batch needs one of every row."""
    for arrays in padded:
        arrays.setdefault("vision_features", np.zeros((length, width), np.float32))

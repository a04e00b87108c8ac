"""The loop over phases: a batch of prompts is read, then text and pictures alternate until every answer is finished.

Nothing waits for the device but text, whose end decides what comes next: pictures go to the tokenizer's decoder as soon
as their codes are asked for, and are fetched when somebody looks at them.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from nextflow_jax import sequence
from nextflow_jax.bundle import Bundle
from nextflow_jax.models.decoder import DecoderInputs
from nextflow_jax.sampling.answers import DRAW, OPEN, WRITE, Answer, DrawnPictures, ImagePiece
from nextflow_jax.sampling.batches import batch_shape, text_space
from nextflow_jax.sampling.phases import Drawing, Draws, TextLimits, make_phases
from nextflow_jax.sampling.prompts import Prompt
from nextflow_jax.sampling.settings import per_scale
from nextflow_jax.sampling.steps import Rows, ScaleFeatures
from nextflow_jax.sampling.weights import place_weights
from nextflow_jax.scales import ScaleSchedule
from nextflow_jax.vision.codec import PendingPictures


class Pace(NamedTuple):
    """How much is done before anybody is told."""

    text_tokens: int | None = None
    """Text tokens written at once; None: all."""
    by_scale: bool = False
    """Pictures are drawn a scale at a time, each decoded, while others write; or whole, one group after the other."""
    every_scale: bool = False
    """Finished pictures come with their state after every scale."""


class Written(NamedTuple):
    """These answers have more text."""

    answers: list[int]


class Unfinished(NamedTuple):
    """Pictures of these answers have one more scale."""

    answers: list[int]
    scales: int
    """Drawn so far."""
    num_scales: int
    pictures: PendingPictures


class Drawn(NamedTuple):
    """These answers have one more picture."""

    answers: list[int]


Change = Written | Unfinished | Drawn


@dataclasses.dataclass(eq=False)
class _Group:
    """Pictures of one size that answers opened together, under way."""

    size: tuple[int, int]
    schedule: ScaleSchedule
    answers: list[int]
    drawing: Drawing | None = None
    codes: list[Int[Array, "B n"]] = dataclasses.field(default_factory=list)
    log_probs: list[Float[Array, "B n"]] = dataclasses.field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether all codes are drawn."""
        return sum(codes.shape[1] for codes in self.codes) == self.schedule.num_tokens

    def codes_so_far(self) -> Int[Array, "B N"]:
        """All codes, 0 where none is drawn yet."""
        known = jnp.concatenate(self.codes, axis=1)
        return jnp.pad(known, ((0, 0), (0, self.schedule.num_tokens - known.shape[1])))


@dataclasses.dataclass(eq=False)
class _Batch:
    """A batch under way; rows that only fill it up have finished answers."""

    answers: list[Answer]
    rows: Rows
    key: Key[Array, "B"]
    groups: list[_Group] = dataclasses.field(default_factory=list)

    def mask(self, members: Sequence[int]) -> np.ndarray:
        """Which rows are members."""
        return np.isin(np.arange(len(self.answers)), members)

    def whose_turn(self, turn: str) -> list[int]:
        """The unfinished answers that do this next."""
        return [i for i, answer in enumerate(self.answers) if answer.may_do(turn)]


class Engine:
    """Runs batches of prompts through one decoder."""

    def __init__(self, bundle: Bundle) -> None:
        part = bundle.decoder
        features = None
        if part.sequence.inputs == "accumulated":
            features = ScaleFeatures(bundle.codec.codebook, bundle.codec.refinement)
        self._weights = place_weights(part.config, part.variables, features)
        self._phases = make_phases(part.config, part.sequence)
        self._vocabulary = part.config.vocabulary
        self._text_tokenizer = bundle.text_tokenizer
        self._codec = bundle.codec

    def run(self, prompts: Sequence[Prompt], every_scale: bool = False) -> list[Answer]:
        """The finished answers to a batch of prompts; `every_scale` keeps the pictures after each scale."""
        answers = [Answer.start(prompt) for prompt in prompts]
        for _ in self.steps(answers, Pace(every_scale=every_scale)):
            pass
        return answers

    def steps(self, answers: list[Answer], pace: Pace) -> Iterator[Change]:
        """Continues empty answers until they are finished, and says whenever some have grown.

        The batch is padded to sizes that recur: few compilations. Answers do not depend on the pace.
        """
        shape = batch_shape([answer.prompt for answer in answers])
        fill = [dataclasses.replace(answers[0], finish="padding") for _ in range(shape.requests - len(answers))]
        everyone = [*answers, *fill]
        seeds = jnp.asarray([answer.prompt.request.seed for answer in everyone], jnp.uint32)
        rows = self._read_prompts([answer.prompt for answer in everyone])
        batch = _Batch(everyone, rows, jax.vmap(jax.random.key)(seeds))
        while not all(answer.finish for answer in everyone):
            yield from self._write_text(batch, pace)
            self._open_images(batch)
            yield from self._draw_images(batch, pace)

    def text_of(self, tokens: Int[np.ndarray, "n"]) -> str:
        """The text of unified ids, specials left out."""
        return self._text_tokenizer.decode(tokens[tokens < self._vocabulary.text_size].tolist())

    def _read_prompts(self, prompts: Sequence[Prompt]) -> Rows:
        shape = batch_shape(prompts)
        layouts = [prompt.guided for prompt in prompts]
        if shape.guided:
            layouts += [prompt.unguided for prompt in prompts]
        padded = [sequence.pack_row([layout], shape.prompt, self._vocabulary).arrays() for layout in layouts]
        features = self._weights.features
        if features is not None:
            _fill_features(padded, shape.prompt, features.codebook.shape[1])
        return self._phases.read_prompt(
            self._weights,
            DecoderInputs.of({name: np.stack([arrays[name] for arrays in padded]) for name in padded[0]}),
            np.asarray([len(layout) for layout in layouts], np.int32),
            np.asarray([layout.positions[-1, 0] + 1 for layout in layouts], np.float32),
            slots=shape.slots,
            guided=shape.guided,
        )

    def _write_text(self, batch: _Batch, pace: Pace) -> Iterator[Change]:
        """Lets every answer that is not drawing write until it opens a picture, ends, or meets a limit or the pace."""
        writing = batch.whose_turn(WRITE)
        if not writing:
            return
        most = pace.text_tokens or batch.rows.cache.capacity
        limits = [0] * len(batch.answers)
        for i in writing:
            limits[i] = min(batch.answers[i].text_limit, most)
        batch.rows, text = self._phases.write_text(
            self._weights,
            batch.rows,
            _text_draws(batch),
            TextLimits(
                np.asarray(limits, np.int32),
                np.asarray([answer.open_until for answer in batch.answers], np.int32),
                np.asarray([answer.prompt.end for answer in batch.answers], np.int32),
                np.int32(self._text_tokenizer.size),
            ),
            space=text_space(max(limits)),
        )
        tokens, log_probs, count, stop = map(np.asarray, text)
        for i in writing:
            batch.answers[i].add_text(tokens[i, : count[i]], log_probs[i, : count[i]], int(stop[i]))
        yield Written(writing)

    def _open_images(self, batch: _Batch) -> None:
        """Pictures that are to be opened, grouped by size."""
        sizes = {i: self._next_size(batch.answers[i]) for i in batch.whose_turn(OPEN)}
        for size in dict.fromkeys(sizes.values()):
            members = [i for i, its_size in sizes.items() if its_size == size]
            batch.groups.append(_Group(size, self._codec.family.schedule(size), members))
            for i in members:
                batch.answers[i].turn = DRAW

    def _next_size(self, answer: Answer) -> tuple[int, int]:
        return answer.prompt.size_after([self.text_of(piece.words) for piece in answer.pieces if not piece.is_image])

    def _draw_images(self, batch: _Batch, pace: Pace) -> Iterator[Change]:
        """Pictures under way, whole or a scale each; closes those that are finished where text may follow."""
        groups, batch.groups = batch.groups, []
        closing: list[int] = []
        for group in groups:
            if pace.by_scale:
                self._draw_scale(batch, group)
            else:
                self._draw_whole(batch, group)
            if group.finished:
                closing += self._finish_group(batch, group, pace)
                yield Drawn(group.answers)
            else:
                batch.groups.append(group)
                codes, scales = group.codes_so_far(), len(group.codes)
                pictures = self._codec.dispatch_unfinished(codes, group.answers, group.size, scales)
                yield Unfinished(group.answers, scales, group.schedule.num_scales, pictures)
        if closing:
            batch.rows = self._phases.close_image(self._weights, batch.rows, batch.mask(closing))

    def _draw_whole(self, batch: _Batch, group: _Group) -> None:
        draws, active = _picture_draws(batch, group.schedule), batch.mask(group.answers)
        batch.rows, codes, log_probs = self._phases.draw_image(
            self._weights, batch.rows, draws, active, schedule=group.schedule
        )
        group.codes, group.log_probs = [codes], [log_probs]

    def _draw_scale(self, batch: _Batch, group: _Group) -> None:
        draws, active = _picture_draws(batch, group.schedule), batch.mask(group.answers)
        self._phases.prepare_image(self._weights, batch.rows, draws, active, group.schedule)
        batch.rows, group.drawing, log_probs = self._phases.draw_scale(
            self._weights, batch.rows, group.drawing, draws, active, schedule=group.schedule, k=len(group.codes)
        )
        group.codes.append(group.drawing.codes)
        group.log_probs.append(log_probs)

    def _finish_group(self, batch: _Batch, group: _Group, pace: Pace) -> list[int]:
        """Gives the pictures to their answers and to the tokenizer's decoder; the answers that go on with text."""
        codes = group.codes_so_far()
        pictures = self._codec.dispatch(codes, group.answers, group.size, pace.every_scale)
        log_probs = jnp.concatenate(group.log_probs, axis=1)
        drawn = DrawnPictures(codes, log_probs, tuple(group.answers), group.size, pictures)
        for i in group.answers:
            batch.answers[i].add_image(ImagePiece(drawn, i))
        closing = [i for i in group.answers if not batch.answers[i].finish]
        for i in closing:
            batch.answers[i].length += 1
        return closing


def _text_draws(batch: _Batch) -> Draws:
    settings = [answer.prompt.settings for answer in batch.answers]
    names = ("text_temperature", "text_top_k", "text_top_p")
    columns = (np.asarray([[getattr(item, name)] for item in settings], np.float32) for name in names)
    return Draws(batch.key, np.ones((len(settings), 1), np.float32), *columns)


def _picture_draws(batch: _Batch, schedule: ScaleSchedule) -> Draws:
    settings = [answer.prompt.settings for answer in batch.answers]
    scales = schedule.num_scales
    guidance = np.stack([item.guidance_of_scales(scales) for item in settings])
    names = ("temperature", "top_k", "top_p")
    columns = (np.stack([per_scale(getattr(item, name), scales) for item in settings]) for name in names)
    return Draws(batch.key, guidance, *columns)


def _fill_features(padded: Sequence[dict[str, np.ndarray]], length: int, width: int) -> None:
    """Prompts without pictures have no feature array; a batch needs one of every row."""
    for arrays in padded:
        arrays.setdefault("vision_features", np.zeros((length, width), np.float32))

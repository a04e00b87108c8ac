"""Requests as prompts: checked, tokenised and laid out as training would, with the condition and without."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from nextflow_jax import sequence
from nextflow_jax.bundle import Bundle
from nextflow_jax.config import preflight
from nextflow_jax.errors import UserError
from nextflow_jax.sampling.requests import Request
from nextflow_jax.sampling.settings import SamplingSettings
from nextflow_jax.scales import ScaleSchedule

SEEDS = 2**32
"""Seeds are below this."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """A request, ready to be read by the decoder."""

    request: Request
    settings: SamplingSettings
    size: tuple[int, int]
    schedule: ScaleSchedule
    guided: sequence.Sequence
    unguided: sequence.Sequence
    """Without the text, where the answer has a picture; equal to `guided` otherwise."""
    capacity: int
    """Positions that prompt and answer may take together."""

    @property
    def longest(self) -> int:
        """Positions that prompt and answer can take at most."""
        request = self.request
        images = request.max_images * sequence.image_positions(self.schedule)
        return min(self.capacity, len(self.guided) + request.max_text_tokens + images)


def make_prompts(requests: Sequence[Request], bundle: Bundle) -> list[Prompt]:
    """The prompts of a batch of requests.

    Raises:
      UserError: a broken setting, an empty prompt, an unsupported picture size, or a
        document too long to answer.
    """
    codes = _encode_pictures(requests, bundle)
    return [_make_prompt(request, bundle, codes) for request in requests]


def _make_prompt(request: Request, bundle: Bundle, codes: dict[int, np.ndarray]) -> Prompt:
    settings = bundle.defaults if request.settings is None else request.settings
    preflight(settings, "settings")
    _check_request(request)
    size = bundle.codec.family.sizes[0] if request.size is None else request.size
    segments = _segments(request, bundle, codes)
    part = bundle.decoder
    accumulate = bundle.codec.accumulate if part.sequence.inputs == "accumulated" else None
    guided, unguided = (
        sequence.flatten(items, part.config.vocabulary, part.sequence, eos=False, accumulate=accumulate)
        for items in (segments, sequence.drop_condition(segments))
    )
    schedule = bundle.codec.family.schedule(size)
    answer = schedule.num_tokens if request.begin_with_image else 1
    if len(guided) + answer > part.max_positions:
        raise UserError(
            f"the prompt has {len(guided)} tokens; with an answer of at least {answer} it exceeds the limit of "
            f"{part.max_positions} positions of this model: shorten it to {part.max_positions - answer}"
        )
    return Prompt(request, settings, size, schedule, guided, unguided, part.max_positions)


def _check_request(request: Request) -> None:
    if not any(not isinstance(item, str) or item.strip() for item in request.document):
        raise UserError("the prompt is empty; write what to draw, or give a picture")
    if not 0 <= request.seed < SEEDS:
        raise UserError(f"seed {request.seed}: must be in [0, {SEEDS})")
    for name in ("max_images", "max_text_tokens"):
        if getattr(request, name) < 0:
            raise UserError(f"{name} {getattr(request, name)}: must not be negative; use 0 for none")
    if request.begin_with_image and request.max_images == 0:
        raise UserError("begin_with_image asks for a picture and max_images 0 forbids it; raise max_images to 1")
    if not request.begin_with_image and request.max_text_tokens == 0:
        raise UserError("max_text_tokens 0 leaves nothing to write; raise it, or set begin_with_image to draw at once")


def _segments(request: Request, bundle: Bundle, codes: dict[int, np.ndarray]) -> list[sequence.Segment]:
    """As the training pipeline lays a document's prompt out: its text is a condition where the answer has pictures."""
    draws = request.max_images > 0
    segments: list[sequence.Segment] = []
    for item in request.document:
        if isinstance(item, str):
            tokens = np.asarray(bundle.text_tokenizer.encode(item), np.int32)
            segments.append(sequence.TextSegment(tokens, condition=draws))
        else:
            schedule = bundle.codec.family.schedule(item.shape[:2])
            context = bundle.decoder.last_scale_context
            segments.append(sequence.ImageSegment(schedule, codes[id(item)], codes[id(item)], context_block=context))
    return segments


def _encode_pictures(requests: Sequence[Request], bundle: Bundle) -> dict[int, np.ndarray]:
    """Codes of all pictures of a batch, by the identity of their arrays; one call of the tokenizer a size."""
    pictures = {id(item): item for request in requests for item in request.document if not isinstance(item, str)}
    codes = {}
    for size in dict.fromkeys(picture.shape[:2] for picture in pictures.values()):
        names = [name for name, picture in pictures.items() if picture.shape[:2] == size]
        inputs, _ = bundle.codec.encode(np.stack([pictures[name] for name in names]))
        codes.update(zip(names, inputs))
    return codes

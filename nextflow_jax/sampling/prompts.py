"""Requests as prompts: checked, tokenised and laid out as training would, with the condition and without."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from nextflow_jax import sequence
from nextflow_jax.bundle import Bundle
from nextflow_jax.config import preflight
from nextflow_jax.errors import UserError
from nextflow_jax.sampling.requests import Request
from nextflow_jax.sampling.resolutions import Resolution, resolve
from nextflow_jax.sampling.settings import SamplingSettings
from nextflow_jax.scales import ScaleSchedule, ScheduleFamily

SEEDS = 2**32
"""Seeds are below this."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """A request, ready to be read by the decoder."""

    request: Request
    settings: SamplingSettings
    resolution: Resolution
    family: ScheduleFamily
    guided: sequence.Sequence
    unguided: sequence.Sequence
    """Without the condition, where the answer has a picture; equal to `guided` otherwise."""
    capacity: int
    """Positions that prompt and answer may take together."""
    end: int
    """The id that ends the answer, beside `<eos>` or the same."""

    @property
    def schedule(self) -> ScaleSchedule:
        """Of the pictures to draw, where the text says nothing else."""
        return self.family.schedule(self.resolution.size)

    @property
    def is_guided(self) -> bool:
        """Whether its answer needs the unguided half."""
        return self.settings.guided and self.request.max_images > 0

    @property
    def picture_codes(self) -> int:
        """Codes of a picture of the answer, at most."""
        return max(self.family.schedule(size).num_tokens for size in self.resolution.possible(self.family))

    @property
    def longest(self) -> int:
        """Positions that prompt and answer can take at most."""
        request = self.request
        text = request.max_thought_tokens + request.max_text_tokens
        return min(self.capacity, len(self.guided) + text + request.max_images * (self.picture_codes + 1))

    def size_after(self, written: Sequence[str]) -> tuple[int, int]:
        """The size of the picture that comes after the prompt and these texts of the answer."""
        asked = [item for item in self.request.document if isinstance(item, str)]
        return self.resolution.after([*asked, *written], self.family)


def make_prompts(requests: Sequence[Request], bundle: Bundle) -> list[Prompt]:
    """The prompts of a batch of requests.

    Raises:
      UserError: a broken setting, an empty prompt, an unsupported picture size, or a
        document too long to answer.
    """
    for request in requests:
        _check_request(request)
    codes = _encode_pictures(requests, bundle)
    return [_make_prompt(request, bundle, codes) for request in requests]


def _make_prompt(request: Request, bundle: Bundle, codes: dict[int, np.ndarray]) -> Prompt:
    settings = bundle.defaults if request.settings is None else request.settings
    preflight(settings, "settings")
    segments = _segments(request, bundle, codes)
    part, family = bundle.decoder, bundle.codec.family
    accumulate = bundle.codec.accumulate if part.sequence.inputs == "accumulated" else None
    guided, unguided = (
        sequence.flatten(items, part.config.vocabulary, part.sequence, eos=False, accumulate=accumulate)
        for items in (segments, _without_condition(segments, request, settings))
    )
    pictures = [item.shape[:2] for item in request.document if not isinstance(item, str)]
    resolution = resolve(request.size, family, pictures)
    end = _end_id(request, bundle)
    prompt = Prompt(request, settings, resolution, family, guided, unguided, part.max_positions, end)
    _check_scales(prompt)
    _check_room(prompt, segments)
    return prompt


def _check_request(request: Request) -> None:
    if not any(not isinstance(item, str) or item.strip() for item in request.document):
        raise UserError("the prompt is empty; write what to draw, or give a picture")
    if not 0 <= request.seed < SEEDS:
        raise UserError(f"seed {request.seed}: must be in [0, {SEEDS})")
    for name in ("max_images", "max_text_tokens", "max_thought_tokens"):
        if getattr(request, name) < 0:
            raise UserError(f"{name} {getattr(request, name)}: must not be negative; use 0 for none")
    if request.begin_with_image and request.max_images == 0:
        raise UserError("begin_with_image asks for a picture and max_images 0 forbids it; raise max_images to 1")
    if not request.begin_with_image and request.max_text_tokens == 0:
        raise UserError("max_text_tokens 0 leaves nothing to write; raise it, or set begin_with_image to draw at once")
    if not request.begin_with_image and request.max_thought_tokens:
        raise UserError(
            f"max_thought_tokens {request.max_thought_tokens}: a thought comes before a picture that is sure to be "
            "drawn; set begin_with_image too, or use max_text_tokens"
        )


def _end_id(request: Request, bundle: Bundle) -> int:
    if not request.end_mark:
        return bundle.decoder.config.vocabulary.eos
    ids = bundle.text_tokenizer.encode(request.end_mark)
    if len(ids) != 1:
        raise UserError(f"end_mark {request.end_mark!r}: is {len(ids)} tokens of this tokenizer; give one that is one")
    return ids[0]


def _check_scales(prompt: Prompt) -> None:
    first, scales = prompt.settings.guidance_scales[:1], prompt.family.max_scales
    if first and first[0] > scales:
        raise UserError(f"settings.guidance_scales begin at scale {first[0]}: pictures of this model have {scales}")


def _check_room(prompt: Prompt, segments: Sequence[sequence.Segment]) -> None:
    """Whether the shortest answer fits: one token, or the picture that is sure to come."""
    length, limit = len(prompt.guided), prompt.capacity
    least = prompt.picture_codes if prompt.request.begin_with_image else 1
    if length + least <= limit:
        return
    pictures = [segment for segment in segments if isinstance(segment, sequence.ImageSegment)]
    taken = sequence.sequence_length(pictures, bos=False, eos=False)
    share = f" ({taken} of them are {len(pictures)} pictures: leave some out)" if pictures else ""
    raise UserError(
        f"the prompt has {length} tokens; with an answer of at least {least} it exceeds the limit of "
        f"{limit} positions of this model: shorten it to {limit - least}{share}"
    )


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


def _without_condition(
    segments: list[sequence.Segment], request: Request, settings: SamplingSettings
) -> list[sequence.Segment]:
    """What the unguided half reads. Nothing but `<bos>` is a text-to-image document as condition dropout leaves it."""
    if settings.guidance_drops == "all" and request.max_images > 0:
        return []
    return sequence.drop_condition(segments)


def _encode_pictures(requests: Sequence[Request], bundle: Bundle) -> dict[int, np.ndarray]:
    """Codes of all pictures of a batch, by the identity of their arrays; one call of the tokenizer a size."""
    pictures = {id(item): item for request in requests for item in request.document if not isinstance(item, str)}
    codes = {}
    for size in dict.fromkeys(picture.shape[:2] for picture in pictures.values()):
        names = [name for name, picture in pictures.items() if picture.shape[:2] == size]
        inputs, _ = bundle.codec.encode(np.stack([pictures[name] for name in names]))
        codes.update(zip(names, inputs))
    return codes

"""The sampler: requests in, results out, in batches of any mixture of tasks, lengths and sizes."""

from collections.abc import Iterator, Sequence

from nextflow_jax.bundle import Bundle
from nextflow_jax.errors import UserError
from nextflow_jax.sampling.answers import Answer
from nextflow_jax.sampling.batches import split
from nextflow_jax.sampling.engine import Engine, Pace
from nextflow_jax.sampling.prompts import Prompt, make_prompts
from nextflow_jax.sampling.requests import Request, Result
from nextflow_jax.sampling.results import make_result
from nextflow_jax.sampling.streaming import Event, stream_batch

MAX_CACHE_BYTES = 16 * 2**30
"""Keys and values of a batch take at most this much memory by default."""

TEXT_TOKENS = 8
"""Text tokens that a stream waits for at once."""


class Sampler:
    """Continues documents with a bundle's decoder. Keep one: it holds the compiled programs."""

    def __init__(self, bundle: Bundle, max_batch: int = 64, max_cache_bytes: int = MAX_CACHE_BYTES) -> None:
        """Puts the bundle's weights on the device.

        Args:
          bundle: with a decoder.
          max_batch: requests handled together; more are taken in turns.
          max_cache_bytes: for the keys and values of those handled together, on all devices; the batch is smaller where
            they would need more.

        Raises:
          UserError: the bundle holds no decoder.
        """
        if bundle.decoder is None or bundle.text_tokenizer is None:
            raise UserError("this bundle holds no decoder, only a vision tokenizer; export one from a decoder run")
        self._bundle = bundle
        self._max_batch = max_batch
        self._max_cache_bytes = max_cache_bytes
        self._engine = Engine(bundle)

    def generate(self, requests: Sequence[Request], save_scales: bool = False) -> list[Result]:
        """The result of every request, in order. Each depends on its own request alone, seed included.

        Args:
          requests: any mixture of tasks, prompt lengths and picture sizes.
          save_scales: also decode every picture after each of its scales.

        Raises:
          UserError: a request that cannot be answered, before any work is done; see `prompts.make_prompts` and
            `batches.split`.
        """
        answers: list[Answer] = []
        for prompts in self._batches(requests):
            answers += self._engine.run(prompts, every_scale=save_scales)
        return [make_result(answer, self._engine.text_of) for answer in answers]

    def stream(
        self, requests: Sequence[Request], save_scales: bool = False, text_tokens: int = TEXT_TOKENS
    ) -> Iterator[Event]:
        """What `generate` gives, as it comes: see streaming.py. Texts, pictures and results are the same.

        Args:
          requests: as for `generate`; those of one batch go on together, each at its own pace.
          save_scales: finished pictures also hold their state after each scale, which comes as events in any case.
          text_tokens: text tokens written between two looks at the other answers.

        Raises:
          UserError: as `generate`; at the call, not while iterating.
        """
        return self._stream(self._batches(requests), Pace(text_tokens, by_scale=True, every_scale=save_scales))

    def _stream(self, batches: Sequence[Sequence[Prompt]], pace: Pace) -> Iterator[Event]:
        first = 0
        for prompts in batches:
            answers = [Answer.start(prompt) for prompt in prompts]
            yield from stream_batch(answers, self._engine.steps(answers, pace), first, self._engine.text_of)
            first += len(answers)

    def _batches(self, requests: Sequence[Request]) -> list[Sequence[Prompt]]:
        prompts = make_prompts(requests, self._bundle)
        if not prompts:
            return []
        return split(prompts, self._bundle.decoder.config, self._max_batch, self._max_cache_bytes)

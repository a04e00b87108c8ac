"""The model's answers to documents whose response is taken away, through the sampler."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from nextflow_jax.data.documents import Document, Image
from nextflow_jax.data.pictures import PictureSet
from nextflow_jax.evals.config import EvaluationConfig
from nextflow_jax.sampling.requests import Request, Result


@runtime_checkable
class Generator(Protocol):
    """What answers requests: nextflow_jax.sampling.sampler.Sampler."""

    def generate(self, requests: Sequence[Request], save_scales: bool = False) -> list[Result]:
        """One result a request; with `save_scales` pictures come with their state after every scale."""


Progress = Callable[[str, int, int], None]
"""Told (what is answered, answers so far, answers in all) after every batch."""


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """Pictures and texts that a model answers with.

    The documents are those that training shows (nextflow_jax/data/openmoji/tasks.py), so prompts read as in training.
    Answer i of a call is sampled with seed `config.seed` + i.
    """

    generator: Generator
    pictures: PictureSet
    config: EvaluationConfig
    progress: Progress = lambda what, done, total: None

    def images(self, what: str, documents: Sequence[Document]) -> UInt8[np.ndarray, "Q height width 3"]:
        """The first picture of each answer; `what` goes to `progress`."""
        images = [result.images[0] for result in self._results(what, documents)]
        return np.stack(images) if images else np.zeros((0, *self.pictures.config.size, 3), np.uint8)

    def stages(self, what: str, documents: Sequence[Document]) -> UInt8[np.ndarray, "Q K height width 3"]:
        """As `images`, with the picture after each scale; the last one is the finished picture."""
        results = self._results(what, documents, save_scales=True)
        return np.stack([np.stack(result.segments[0].partial) for result in results])

    def texts(self, what: str, documents: Sequence[Document]) -> list[str]:
        """The text of each answer."""
        return [result.text for result in self._results(what, documents)]

    def _results(self, what: str, documents: Sequence[Document], save_scales: bool = False) -> list[Result]:
        requests = [self._request(document, self.config.seed + i) for i, document in enumerate(documents)]
        results: list[Result] = []
        for start in range(0, len(requests), self.config.batch_size):
            results += self.generator.generate(requests[start : start + self.config.batch_size], save_scales)
            self.progress(what, len(results), len(requests))
        return results

    def _request(self, document: Document, seed: int) -> Request:
        roles = [segment.role for segment in document.segments]
        prompt, response = document.segments[: roles.index("response")], document.segments[roles.index("response")]
        draws = isinstance(response, Image)
        return Request(
            tuple(self.pictures[part.key].image if isinstance(part, Image) else part.text for part in prompt),
            size=self.pictures.config.size,
            begin_with_image=draws,
            max_images=1 if draws else 0,
            max_text_tokens=0 if draws else self.config.max_text_tokens,
            seed=seed,
            settings=self.config.sampling,
        )

"""The model's answers to the questions of the evaluation, through the sampler."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from nextflow_jax.evals.config import EvaluationConfig
from nextflow_jax.sampling import requests
from nextflow_jax.sampling.engine import Sampler

Pictures = UInt8[np.ndarray, "Q height width 3"]


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """Pictures and captions of one model. Request i of a call is sampled with seed `config.seed` + i.

    `progress(done, total)` is called after every batch.
    """

    sampler: Sampler
    size: tuple[int, int]
    """Height and width of the pictures."""
    config: EvaluationConfig
    progress: Callable[[str, int, int], None] = lambda what, done, total: None

    def draw(self, prompts: Sequence[str]) -> Pictures:
        """A picture of each prompt."""
        return self._pictures("pictures drawn", [requests.text_to_image(prompt) for prompt in prompts])

    def draw_stages(self, prompts: Sequence[str]) -> UInt8[np.ndarray, "Q K height width 3"]:
        """As `draw`, with the picture after each scale; the last is the finished one."""
        asked = [requests.text_to_image(prompt) for prompt in prompts]
        results = self._results("pictures drawn", asked, save_scales=True)
        return np.stack([np.stack(result.segments[0].partial) for result in results])

    def describe(self, images: Pictures) -> list[str]:
        """A caption of each picture."""
        asked = [requests.caption(image, max_text_tokens=self.config.max_text_tokens) for image in images]
        return [result.text for result in self._results("captions written", asked)]

    def edit(self, images: Pictures, instructions: Sequence[str]) -> Pictures:
        """Each picture, changed as its instruction says."""
        asked = [requests.edit(image, instruction) for image, instruction in zip(images, instructions, strict=True)]
        return self._pictures("pictures edited", asked)

    def _pictures(self, what: str, asked: Sequence[requests.Request]) -> Pictures:
        images = [result.images[0] for result in self._results(what, asked)]
        return np.stack(images) if images else np.zeros((0, *self.size, 3), np.uint8)

    def _results(
        self, what: str, asked: Sequence[requests.Request], save_scales: bool = False
    ) -> list[requests.Result]:
        asked = [
            dataclasses.replace(request, size=self.size, seed=self.config.seed + i, settings=self.config.sampling)
            for i, request in enumerate(asked)
        ]
        results: list[requests.Result] = []
        for start in range(0, len(asked), self.config.batch_size):
            results += self.sampler.generate(asked[start : start + self.config.batch_size], save_scales=save_scales)
            self.progress(what, len(results), len(asked))
        return results

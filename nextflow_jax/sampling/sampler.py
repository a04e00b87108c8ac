"""The sampler: requests in, results out, in batches of any mixture of tasks, lengths and sizes."""

from collections.abc import Sequence

import numpy as np

from nextflow_jax.bundle import Bundle
from nextflow_jax.errors import UserError
from nextflow_jax.sampling.engine import Answer, Engine, Piece
from nextflow_jax.sampling.prompts import make_prompts
from nextflow_jax.sampling.requests import GeneratedImage, GeneratedText, Picture, Request, Result


class Sampler:
    """Continues documents with a bundle's decoder. Keep one: it holds the compiled programs."""

    def __init__(self, bundle: Bundle, max_batch: int = 64) -> None:
        """Puts the bundle's weights on the device.

        Args:
          bundle: with a decoder.
          max_batch: requests handled together; more are taken in turns.

        Raises:
          UserError: the bundle holds no decoder.
        """
        if bundle.decoder is None or bundle.text_tokenizer is None:
            raise UserError("this bundle holds no decoder, only a vision tokenizer; export one from a decoder run")
        self._bundle = bundle
        self._max_batch = max_batch
        self._engine = Engine(bundle)

    def generate(self, requests: Sequence[Request], save_scales: bool = False) -> list[Result]:
        """The result of every request, in order. Each depends on its own request alone, seed included.

        Args:
          requests: any mixture of tasks, prompt lengths and picture sizes.
          save_scales: also decode every picture after each of its scales.

        Raises:
          UserError: a request that cannot be answered, before any work is done; see `prompts.make_prompts`.
        """
        prompts = make_prompts(requests, self._bundle)
        answers: list[Answer] = []
        for start in range(0, len(prompts), self._max_batch):
            answers += self._engine.run(prompts[start : start + self._max_batch])
        pictures = self._decode(answers, save_scales)
        return [
            Result(tuple(self._segment(piece, pictures) for piece in answer.pieces), answer.finish)
            for answer in answers
        ]

    def _decode(self, answers: Sequence[Answer], save_scales: bool) -> dict[int, tuple[Picture, ...]]:
        """The pictures of all pieces that are one, by the piece's identity, last scale last; a call a size."""
        drawn = [(answer.prompt.size, piece) for answer in answers for piece in answer.pieces if piece.is_image]
        pictures = {}
        for size in dict.fromkeys(size for size, _ in drawn):
            pieces = [piece for its_size, piece in drawn if its_size == size]
            codes = np.stack([piece.tokens for piece in pieces])
            codec = self._bundle.codec
            stages = codec.decode_partial(codes, size) if save_scales else [codec.decode(codes, size)]
            pictures.update((id(piece), tuple(stage[i] for stage in stages)) for i, piece in enumerate(pieces))
        return pictures

    def _segment(self, piece: Piece, pictures: dict[int, tuple[Picture, ...]]) -> GeneratedText | GeneratedImage:
        if piece.is_image:
            stages = pictures[id(piece)]
            return GeneratedImage(stages[-1], piece.tokens, piece.log_probs, stages if len(stages) > 1 else ())
        text_size = self._bundle.decoder.config.vocabulary.text_size
        text = self._bundle.text_tokenizer.decode(piece.tokens[piece.tokens < text_size].tolist())
        return GeneratedText(text, piece.tokens, piece.log_probs)

"""Finished answers as results: pieces become texts and pictures; this is where the device is waited for."""

from collections.abc import Callable

from nextflow_jax.sampling.answers import Answer, ImagePiece, TextPiece
from nextflow_jax.sampling.requests import GeneratedImage, GeneratedText, Result

TextOf = Callable[..., str]
"""Unified ids to text, specials left out."""


def make_result(answer: Answer, text_of: TextOf) -> Result:
    """The result of a finished answer."""
    segments = tuple(make_segment(piece, text_of) for piece in shown_pieces(answer))
    return Result(segments, answer.finish)


def shown_pieces(answer: Answer) -> list[TextPiece | ImagePiece]:
    """The pieces that are segments of the result: all but a thought that the request does not keep."""
    keeps = answer.prompt.request.keep_thought
    return [piece for piece in answer.pieces if piece.is_image or keeps or not piece.is_thought]


def make_segment(piece: TextPiece | ImagePiece, text_of: TextOf) -> GeneratedText | GeneratedImage:
    """A piece as a segment of a result."""
    if not piece.is_image:
        return GeneratedText(text_of(piece.words), piece.tokens, piece.log_probs, piece.is_thought)
    place = piece.drawn.rows.index(piece.row)
    stages = tuple(stage[place] for stage in piece.drawn.pictures.stages())
    return GeneratedImage(stages[-1], piece.tokens, piece.log_probs, stages if len(stages) > 1 else ())

"""An answer as it grows: its pieces, what it may still take, and what comes next."""

import dataclasses

import numpy as np
from jaxtyping import Array, Float, Int

from nextflow_jax.sampling.phases import END, OPEN_IMAGE
from nextflow_jax.sampling.prompts import Prompt
from nextflow_jax.vision.codec import PendingPictures

FINISH_END, FINISH_TEXT, FINISH_IMAGES, FINISH_POSITIONS = "end", "text_limit", "image_limit", "positions"

WRITE, OPEN, DRAW = "write", "open", "draw"
"""What an unfinished answer does next: write text, open a picture, go on with the one under way."""


@dataclasses.dataclass(eq=False)
class TextPiece:
    """Text between pictures: unified ids, the one that closed it included."""

    tokens: Int[np.ndarray, "n"]
    log_probs: Float[np.ndarray, "n"]
    is_thought: bool = False
    closed: bool = False
    """Whether the last id closed it, and is no text."""
    is_image = False

    @property
    def words(self) -> Int[np.ndarray, "m"]:
        """The ids that are text."""
        return self.tokens[:-1] if self.closed else self.tokens

    def extend(self, tokens: Int[np.ndarray, "m"], log_probs: Float[np.ndarray, "m"]) -> None:
        """Text that goes on where this stopped."""
        self.tokens = np.concatenate([self.tokens, tokens])
        self.log_probs = np.concatenate([self.log_probs, log_probs])


@dataclasses.dataclass(frozen=True, eq=False)
class DrawnPictures:
    """Pictures of one size that a batch drew together; still on the device, perhaps not even computed."""

    codes: Int[Array, "B N"]
    log_probs: Float[Array, "B N"]
    rows: tuple[int, ...]
    """Rows of the batch that drew one; `pictures` has these alone, in this order."""
    size: tuple[int, int]
    pictures: PendingPictures


@dataclasses.dataclass(frozen=True, eq=False)
class ImagePiece:
    """A picture of an answer: one row of what was drawn together. Reading an array waits for the device."""

    drawn: DrawnPictures
    row: int
    is_image = True

    @property
    def tokens(self) -> Int[np.ndarray, "N"]:
        """Its codes."""
        return np.asarray(self.drawn.codes)[self.row]

    @property
    def log_probs(self) -> Float[np.ndarray, "N"]:
        """Of its codes."""
        return np.asarray(self.drawn.log_probs)[self.row]


@dataclasses.dataclass(eq=False)
class Answer:
    """An answer as it grows."""

    prompt: Prompt
    length: int
    """Positions of the row so far."""
    text_left: int
    thought_left: int
    images_left: int
    turn: str
    thinking: bool
    """Whether what is written now is the thought before the first picture."""
    finish: str = ""
    """Why it ended; empty while it has not."""
    pieces: list[TextPiece | ImagePiece] = dataclasses.field(default_factory=list)

    @classmethod
    def start(cls, prompt: Prompt) -> "Answer":
        """The empty answer to a prompt."""
        request, length = prompt.request, len(prompt.guided)
        thinking = request.max_thought_tokens > 0 and length + prompt.picture_codes < prompt.capacity
        return cls(
            prompt,
            length,
            text_left=request.max_text_tokens,
            thought_left=request.max_thought_tokens,
            images_left=request.max_images,
            turn=OPEN if request.begin_with_image and not thinking else WRITE,
            thinking=thinking,
        )

    @property
    def room(self) -> int:
        """Positions left."""
        return self.prompt.capacity - self.length

    def may_do(self, turn: str) -> bool:
        """Whether this is what comes next."""
        return not self.finish and self.turn == turn

    @property
    def text_limit(self) -> int:
        """Text tokens that may be written now; a thought leaves room for its picture."""
        if self.thinking:
            return min(self.thought_left, self.room - self.prompt.picture_codes)
        return min(self.text_left, self.room)

    @property
    def open_until(self) -> int:
        """The longest length at which a picture may still be opened; -1: none may."""
        return self.prompt.capacity - self.prompt.picture_codes if self.images_left else -1

    def add_text(self, tokens: Int[np.ndarray, "n"], log_probs: Float[np.ndarray, "n"], stop: int) -> None:
        """Takes what `write_text` wrote; a closing special was not fed to the decoder."""
        if self.pieces and not self.pieces[-1].is_image:
            self.pieces[-1].extend(tokens, log_probs)
        else:
            self.pieces.append(TextPiece(tokens, log_probs, self.thinking))
        self.pieces[-1].closed = stop != 0
        fed = len(tokens) - (stop != 0)
        self.length += fed
        if self.thinking:
            self.thought_left -= fed
        else:
            self.text_left -= fed
        if stop == OPEN_IMAGE or (self.thinking and (stop == END or self.text_limit == 0)):
            self.turn, self.thinking = OPEN, False
        elif stop == END:
            self.finish = FINISH_END
        elif self.text_limit == 0:
            self.finish = FINISH_POSITIONS if self.text_left else FINISH_TEXT

    def add_image(self, piece: ImagePiece) -> None:
        """Takes a picture; `<eoi>` was not fed to the decoder."""
        self.pieces.append(piece)
        self.length += piece.drawn.codes.shape[1]
        self.images_left -= 1
        self.turn = WRITE
        if self.text_left == 0:
            self.finish = FINISH_TEXT if self.images_left else FINISH_IMAGES
        elif self.room < 2:
            self.finish = FINISH_POSITIONS

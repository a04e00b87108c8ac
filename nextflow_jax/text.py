"""Text tokenizers: sentencepiece models trained here or read, Hugging Face tokenizer.json files, one interface.

A tokenizer is its file's bytes: they are kept in the object, saved with every run and bundle, and fingerprinted.
Special tokens are no business of it; vocabulary.py gives ids of their own to <bos>, <boi> and the others.
"""

import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import sentencepiece

from nextflow_jax.chat import TEMPLATE_FILE, read_chat_template
from nextflow_jax.config import Fault
from nextflow_jax.errors import UserError

SENTENCEPIECE_FILE = "text_tokenizer.model"
HUGGING_FACE_FILE = "tokenizer.json"

_BYTE_PIECES = 256
"""Every byte is a piece, so that any text can be written."""


@dataclasses.dataclass(frozen=True)
class TextTokenizerConfig:
    """Where the text tokenizer comes from."""

    path: str = ""
    """A tokenizer file or the folder that holds it; empty: one is trained on the texts at hand."""
    vocab_size: int = 1500
    """Pieces of a trained tokenizer at most; few texts give fewer."""
    split_by_whitespace: bool = False
    """Whether a piece ends at a space; without, frequent phrases become one piece."""

    def faults(self) -> Iterator[Fault]:
        """Yields the rules that the fields break."""
        if self.path and not pathlib.Path(self.path).exists():
            yield Fault("path", self.path, "there is no such file or folder", f"give a {HUGGING_FACE_FILE} or .model")
        if self.vocab_size <= _BYTE_PIECES + 1:
            yield Fault("vocab_size", self.vocab_size, f"{_BYTE_PIECES} bytes come first", "set at least 300")


@runtime_checkable
class TextTokenizer(Protocol):
    """Text to ids in [0, size) and back."""

    @property
    def size(self) -> int:
        """Number of ids."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file: equal fingerprints, equal tokenizers."""

    def pieces(self) -> list[str]:
        """The token of each id; "" of those that a file leaves out."""

    @property
    def file_name(self) -> str:
        """Name that the file goes by inside a folder, telling its kind."""

    @property
    def chat_template(self) -> str:
        """How chats are written, for nextflow_jax/chat.py; "" where nothing says."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""

    def save(self, path: pathlib.Path | str) -> None:
        """Writes the file that `load_text_tokenizer` reads, and a chat template beside it where there is one."""


class SentencePieceTokenizer:
    """A sentencepiece model.

    Args:
      model: bytes of the .model file.

    Raises:
      UserError: the bytes are no sentencepiece model.
    """

    file_name = SENTENCEPIECE_FILE
    chat_template = ""

    def __init__(self, model: bytes):
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise UserError(f"not a sentencepiece model ({len(model)} bytes): {error}") from error

    @property
    def size(self) -> int:
        """Number of ids."""
        return self._processor.vocab_size()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model."""
        return hashlib.sha256(self._model).hexdigest()

    def pieces(self) -> list[str]:
        """The token of each id."""
        return [self._processor.id_to_piece(index) for index in range(self.size)]

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        return self._processor.decode([int(index) for index in ids])

    def save(self, path: pathlib.Path | str) -> None:
        """Writes the model."""
        pathlib.Path(path).write_bytes(self._model)


class HuggingFaceTokenizer:
    """A tokenizer.json of the `tokenizers` library, e.g. Qwen's.

    The file's added tokens, `<|im_start|>` and the like, are ordinary ids here: where a text has them, each is one id.

    Args:
      model: bytes of the file.
      chat_template: Jinja source, see nextflow_jax/chat.py.

    Raises:
      UserError: the bytes are no tokenizer.json, or `tokenizers` is not installed.
    """

    file_name = HUGGING_FACE_FILE

    def __init__(self, model: bytes, chat_template: str = ""):
        try:
            import tokenizers
        except ImportError as error:
            raise UserError("tokenizer.json files need tokenizers; pip install 'nextflow_jax[hf]'") from error
        self._model = model
        self.chat_template = chat_template
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(model.decode("utf-8"))
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"not a tokenizer.json ({len(model)} bytes): {error}") from error
        self._size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @property
    def size(self) -> int:
        """Number of ids: one more than the largest, for files may leave gaps."""
        return self._size

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self._model).hexdigest()

    def pieces(self) -> list[str]:
        """The token of each id; "" of those that the file leaves out."""
        return [self._tokenizer.id_to_token(index) or "" for index in range(self.size)]

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without the special tokens that the file may ask for."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included as text."""
        return self._tokenizer.decode([int(index) for index in ids], skip_special_tokens=False)

    def save(self, path: pathlib.Path | str) -> None:
        """Writes the file, and the chat template beside it."""
        path = pathlib.Path(path)
        path.write_bytes(self._model)
        if self.chat_template:
            (path.parent / TEMPLATE_FILE).write_text(self.chat_template, encoding="utf-8")


def train_sentencepiece(
    texts: Iterable[str], vocab_size: int, split_by_whitespace: bool = False
) -> SentencePieceTokenizer:
    """Trains a unigram model with byte fallback; the same texts give the same model.

    Text is kept as it is (no normalisation), so decoding gives back exactly what was encoded (but
    for U+2581, sentencepiece's own sign for a space).

    Args:
      texts: the corpus; every distinct text counts as often as it comes.
      vocab_size: pieces at most, the 256 bytes included.
      split_by_whitespace: whether pieces end at spaces.

    Raises:
      UserError: no text at all.
    """
    corpus = [text for text in texts if text.strip()]
    if not corpus:
        raise UserError("a text tokenizer needs texts to be trained on, and there are none; check split and languages")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_by_whitespace=split_by_whitespace,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"a text tokenizer of {vocab_size} pieces cannot be trained on {len(corpus)} texts: {error}"
        ) from error
    return SentencePieceTokenizer(model.getvalue())


def load_text_tokenizer(path: pathlib.Path | str) -> TextTokenizer:
    """Reads a tokenizer by its file: *.json is Hugging Face's, any other a sentencepiece model.

    Args:
      path: the file, or a folder with text_tokenizer.model or tokenizer.json in it.

    Raises:
      UserError: no such file, or one that cannot be read.
    """
    path = pathlib.Path(path)
    candidates = [path / SENTENCEPIECE_FILE, path / HUGGING_FACE_FILE] if path.is_dir() else [path]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise UserError(f"{path}: no text tokenizer there; expects {' or '.join(map(str, candidates))}")
    try:
        if file.suffix == ".json":
            return HuggingFaceTokenizer(file.read_bytes(), read_chat_template(file.parent))
        return SentencePieceTokenizer(file.read_bytes())
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def make_text_tokenizer(config: TextTokenizerConfig, texts: Iterable[str]) -> TextTokenizer:
    """The configured tokenizer: read from `config.path`, or trained on `texts` when that is empty."""
    if config.path:
        return load_text_tokenizer(config.path)
    return train_sentencepiece(texts, config.vocab_size, config.split_by_whitespace)

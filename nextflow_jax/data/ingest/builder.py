"""Putting documents together from what records say: what every format shares, refusals included."""

from collections.abc import Callable, Iterable
from typing import Any

from nextflow_jax.data.corpus.raw import Drop, RawDocument, RawImage, RawSegment, RawText, RefusedDocument, checked
from nextflow_jax.data.documents import Role
from nextflow_jax.data.image_files import RefusedImage, read_size
from nextflow_jax.data.ingest.config import SourceConfig
from nextflow_jax.data.ingest.formats import Unit
from nextflow_jax.data.ingest.remote import parent, read_picture, resolve_below
from nextflow_jax.errors import UserError


def build(key: str, make: Callable[[], RawDocument]) -> RawDocument | Drop:
    """The document that `make` returns, checked; a Drop where it raises RefusedDocument or RefusedImage."""
    try:
        return checked(make())
    except (RefusedDocument, RefusedImage) as refused:
        return Drop(key, refused.reason)


def picture(data: bytes, config: SourceConfig, role: Role, loss: bool = True) -> RawImage:
    """A picture of its file's bytes, whose header is read.

    Raises:
      RefusedDocument, RefusedImage: too many bytes, or no picture within the source's limits.
    """
    if len(data) > config.max_bytes:
        raise RefusedDocument("too many bytes")
    return RawImage(data, read_size(data, config.limits), role, loss)


def read_named(name: Any, unit: Unit, config: SourceConfig) -> bytes:
    """The bytes of the picture that a record names: a path below `image_root` or the file's folder, or a URL.

    Raises:
      RefusedDocument: no name, one that is not allowed, or a file that cannot be read.
    """
    if not isinstance(name, str):
        raise RefusedDocument("bad record")
    path = resolve_below(config.image_root or parent(unit.path), name, config.url_schemes)
    return read_picture(path, config.max_bytes)


def decode_text(data: bytes | str) -> str:
    """Text of its UTF-8 bytes.

    Raises:
      RefusedDocument: they are no UTF-8.
    """
    try:
        return data if isinstance(data, str) else data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusedDocument("not utf-8") from error


def captioned(
    key: str,
    images: Iterable[bytes],
    text: str,
    config: SourceConfig,
    *,
    label: str = "",
    licence: str = "",
    source: str = "",
) -> RawDocument:
    """Pictures and one text as a document of the source's task.

    "text_to_image" has the text as the prompt and the pictures as the response, "image_to_text" the other way round;
    of "edit", the last picture is the response to the others and the text; "text", "interleaved" and "frames" are all
    response, text first.

    Raises:
      RefusedDocument, RefusedImage: a picture or the text is missing where the task needs it, or cannot be used.
    """
    pictures = list(images)
    needed = {"text": 0, "interleaved": 0, "edit": 2}.get(config.task, 1)
    if len(pictures) < needed or not text.strip() or (config.task == "text" and pictures):
        raise RefusedDocument("bad record")
    segments = _arrange(config.task, pictures, text, config)
    return RawDocument(key, config.task, tuple(segments), source or config.name, licence or config.licence, label=label)


def key_of(config: SourceConfig, *names: str | int) -> str:
    """`source/name/...`, what a document's key looks like.

    Raises:
      UserError: a name with bytes that are no UTF-8, which keys cannot hold.
    """
    key = "/".join([config.name, *map(str, names)])
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"source {config.name}: file name {key!r} is no UTF-8; rename the file") from error
    return key


def _arrange(task: str, pictures: list[bytes], text: str, config: SourceConfig) -> list[RawSegment]:
    def show(images: Iterable[bytes], role: Role) -> list[RawSegment]:
        return [picture(data, config, role) for data in images]

    if task == "text_to_image":
        return [RawText(text, "prompt"), *show(pictures, "response")]
    if task == "image_to_text":
        return [*show(pictures, "prompt"), RawText(text, "response")]
    if task == "edit":
        return [*show(pictures[:-1], "prompt"), RawText(text, "prompt"), *show(pictures[-1:], "response")]
    return [RawText(text, "response"), *show(pictures, "response")]

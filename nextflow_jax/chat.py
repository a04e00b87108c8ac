"""Chats as documents: messages rendered with a checkpoint's own chat template, pictures kept apart as segments.

A template is a program in Jinja's language that somebody published: it runs in jinja2's immutable sandbox, with the
options and functions that transformers' `apply_chat_template` gives it, so that the same text comes out (transformers
5.23, utils/chat_template_utils.py). A message is {"role": "system" | "user" | "assistant", "content": ...}, its content
a string or a list of parts, {"type": "text", "text": ...} and {"type": "image", "image": ...}.
"""

import datetime
import functools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nextflow_jax.errors import UserError

TEMPLATE_FILE = "chat_template.jinja"
OLDER_FILES = ("chat_template.json", "tokenizer_config.json")
"""Where older folders have it, under `chat_template`."""

PLACE = "\ue000{}\ue001"
"""Stands for picture number {} while a template runs: characters of the private use area, which no template has."""
_PLACE = re.compile("\ue000(\\d+)\ue001")

Message = Mapping[str, Any]


class TextPart(NamedTuple):
    """A stretch of a rendered chat, with the template's own marks (`<|im_start|>` and the like) in it."""

    text: str
    role: str
    """"response": an assistant's answer, which supervised training predicts; "prompt": the rest."""


class PicturePart(NamedTuple):
    """A picture of a chat."""

    picture: Any
    """What the message's part holds under "image"."""
    role: str


def read_chat_template(folder: str | pathlib.Path) -> str:
    """The chat template of a checkpoint's or tokenizer's folder; "" where there is none.

    Raises:
      UserError: a file that should hold it and is not JSON.
    """
    folder = pathlib.Path(folder)
    if (folder / TEMPLATE_FILE).is_file():
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    for name in OLDER_FILES:
        file = folder / name
        if not file.is_file():
            continue
        try:
            found = json.loads(file.read_text(encoding="utf-8")).get("chat_template")
        except (ValueError, AttributeError) as error:
            raise UserError(f"{file}: not a JSON object ({error}); download it again") from error
        if isinstance(found, list):  # several, by name
            found = {entry["name"]: entry["template"] for entry in found}.get("default")
        if found:
            return found
    return ""


def render(messages: Sequence[Message], template: str, *, add_generation_prompt: bool = True, **variables: Any) -> str:
    """The text of a chat, as transformers' `apply_chat_template(tokenize=False)` gives it.

    Args:
      messages: of the chat; parts that are pictures are seen as such by the template, not by their contents.
      template: from `read_chat_template`, or `TextTokenizer.chat_template`.
      add_generation_prompt: whether the text ends with what an assistant's answer follows.
      **variables: for the template, such as tools, bos_token or add_vision_id.

    Raises:
      UserError: no template, one that jinja2 refuses, or messages that it refuses, with its reason.
    """
    import jinja2

    if not template:
        raise UserError(f"this tokenizer has no chat template; put a {TEMPLATE_FILE} beside its file")
    try:
        return _compiled(template).render(
            messages=_plain(list(messages)), add_generation_prompt=add_generation_prompt, **_plain(variables)
        )
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template refuses these messages: {error}") from error
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise UserError(f"the chat template fails on these messages: {error!r}") from error


def to_document(
    messages: Sequence[Message], template: str, *, add_generation_prompt: bool = True, **variables: Any
) -> list[TextPart | PicturePart]:
    """A chat as texts and pictures in the order in which the model reads them.

    The template's marks are kept but for those that it has for pictures: a picture becomes a segment, whose <boi> and
    <eoi> the layout adds. Templates that know no pictures do, too.

    Args and raises: as `render`; also a template that drops or repeats pictures.

    Returns:
      The parts. Texts next to one another differ in their roles; none is empty.
    """
    pictures: list[Any] = []
    flat = [_with_places(message, pictures) for message in messages]
    parts: list[TextPart | PicturePart] = []
    done = ""
    for index, message in enumerate(flat):
        if message.get("role") != "assistant":
            continue
        before = render(flat[:index], template, add_generation_prompt=True, **variables) if index else done
        after = render(flat[: index + 1], template, add_generation_prompt=False, **variables)
        if not (before.startswith(done) and after.startswith(before)):
            raise UserError("the chat template changes earlier messages when later ones follow; answers cannot be told")
        parts += [*_split(before[len(done) :], "prompt", pictures), *_split(after[len(before) :], "response", pictures)]
        done = after
    whole = render(flat, template, add_generation_prompt=add_generation_prompt, **variables)
    if not whole.startswith(done):
        raise UserError("the chat template changes earlier messages when later ones follow; answers cannot be told")
    parts += _split(whole[len(done) :], "prompt", pictures)
    order = [int(number) for number in _PLACE.findall(whole)]
    if order != list(range(len(pictures))):
        raise UserError(f"the chat template puts pictures {order} of {len(pictures)}; each must come once, in order")
    return parts


def _with_places(message: Message, pictures: list[Any]) -> dict[str, Any]:
    """The message with its content as one string, places in it for the pictures, which are added to the list."""
    content = message.get("content")
    if isinstance(content, str) or content is None:
        return dict(message)
    texts = []
    for part in content:
        if part.get("type") == "text":
            texts.append(part["text"])
        elif part.get("type") == "image":
            texts.append(PLACE.format(len(pictures)))
            pictures.append(part.get("image"))
        else:
            raise UserError(f"a message's part is of type {part.get('type')!r}; known are 'text' and 'image'")
    return {**message, "content": "".join(texts)}


def _split(text: str, role: str, pictures: Sequence[Any]) -> list[TextPart | PicturePart]:
    pieces = _PLACE.split(text)
    parts: list[TextPart | PicturePart] = []
    for index, piece in enumerate(pieces):
        if index % 2:
            parts.append(PicturePart(pictures[int(piece)], role))
        elif piece:
            parts.append(TextPart(piece, role))
    return parts


def _plain(value: Any) -> Any:
    """Values of JSON's kinds; anything else is a name in angle brackets, so that templates get no objects to call."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    return f"<{type(value).__name__}>"


@functools.cache
def _compiled(template: str) -> Any:
    """The template, compiled in the sandbox."""
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ImportError as error:
        raise UserError("chat templates need jinja2; pip install 'nextflow_jax[hf]'") from error

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _generation_tag()]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["namespace"] = _namespace()
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template is no valid Jinja template: {error}") from error


def _namespace() -> type:
    """Jinja's namespace without names that begin with an underscore, through which a template could reach Python."""
    import jinja2
    import jinja2.utils

    class Namespace(jinja2.utils.Namespace):
        def __init__(*args: Any, **values: Any) -> None:  # `self` may be a template's name
            for name in (given := dict(*args[1:], **values)):
                _refuse_private(name)
            jinja2.utils.Namespace.__init__(args[0], given)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_private(name)
            super().__setitem__(name, value)

    def _refuse_private(name: str) -> None:
        if name.startswith("_"):
            raise jinja2.sandbox.SecurityError(f"a namespace takes no name like {name!r}")

    return Namespace


def _generation_tag() -> type:
    """`{% generation %}`, with which templates mark answers: what is inside comes out as it is."""
    import jinja2.ext

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    return Generation

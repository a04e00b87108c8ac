"""Requests in files of chat messages, rendered with the chat template of the bundle's text tokenizer.

    {"messages": [{"role": "system", "content": "You draw."},
                  {"role": "user", "content": [{"type": "image", "image": "sun.png"},
                                               {"type": "text", "text": "What is it?"}]}],
     "generate": {"max_images": 0}, "settings": {...}}

or the list of messages alone. "generate" and "settings" are those of documents.py; paths are relative to the file.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from nextflow_jax.chat import Message, TextPart, to_document
from nextflow_jax.errors import UserError
from nextflow_jax.sampling.documents import check_keys, read_json, read_options, read_picture
from nextflow_jax.sampling.requests import Request
from nextflow_jax.sampling.settings import SamplingSettings
from nextflow_jax.text import TextTokenizer


def read_messages(
    path: str | pathlib.Path, tokenizer: TextTokenizer, defaults: SamplingSettings | None = None
) -> Request:
    """The request that a chat's next answer is; what the template puts after an answer ends it.

    Args:
      path: the file.
      tokenizer: has the chat template.
      defaults: what settings that the file leaves out are; None: SamplingSettings().

    Raises:
      UserError: no such file, wrong JSON, a tokenizer without a template, messages that the template refuses.
    """
    path = pathlib.Path(path)
    content = read_json(path, "--messages")
    if isinstance(content, list):
        content = {"messages": content}
    check_keys(content, ("messages", "generate", "settings"), str(path))
    listed = content.get("messages")
    if not isinstance(listed, list) or not listed:
        raise UserError(f'{path}: "messages" must list at least one {{"role": ..., "content": ...}}')
    messages = [_read_message(item, f"{path}: messages[{i}]", path.parent) for i, item in enumerate(listed)]
    parts = to_document(messages, tokenizer.chat_template)
    document = tuple(part.text if isinstance(part, TextPart) else part.picture for part in parts)
    return Request(document, end_mark=_end_mark(messages, tokenizer), **read_options(content, str(path), defaults))


def _read_message(item: Any, where: str, folder: pathlib.Path) -> Message:
    check_keys(item, ("role", "content"), where)
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str) or not isinstance(content, str | list):
        raise UserError(f'{where}: write {{"role": "user", "content": "..."}}, or a list of parts as content')
    if isinstance(content, str):
        return item
    return {**item, "content": [_read_part(part, f"{where}.content[{i}]", folder) for i, part in enumerate(content)]}


def _read_part(part: Any, where: str, folder: pathlib.Path) -> dict[str, Any]:
    check_keys(part, ("type", "text", "image"), where)
    kind = part.get("type")
    if kind not in ("text", "image") or not isinstance(part.get(kind), str):
        raise UserError(
            f'{where} = {part}: write {{"type": "text", "text": "..."}} or {{"type": "image", "image": "x.png"}}'
        )
    return {**part, "image": read_picture(folder / part["image"])} if kind == "image" else part


def _end_mark(messages: Sequence[Message], tokenizer: TextTokenizer) -> str:
    """The token that the template puts after an assistant's answer; "" where it puts none."""
    answered = [*messages, {"role": "assistant", "content": "x"}]
    last = to_document(answered, tokenizer.chat_template, add_generation_prompt=False)[-1]
    after = last.text.rpartition("x")[2] if isinstance(last, TextPart) else ""
    mark = tokenizer.decode(tokenizer.encode(after)[:1])
    return mark if len(tokenizer.encode(mark)) == 1 else ""

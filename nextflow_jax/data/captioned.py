"""Documents of pictures that have captions and nothing else: text to image, and image to text."""

from collections.abc import Sequence

from nextflow_jax.config import choose
from nextflow_jax.data.documents import TASKS, Document, Image, Text
from nextflow_jax.data.pictures import PictureSet

_MADE = ("text_to_image", "image_to_text")


def make_documents(pictures: PictureSet, split: str, tasks: Sequence[str], seed: int) -> list[Document]:
    """One document a picture, task and language, task after task; other tasks have none.

    Args:
      pictures: any captioned pictures.
      split: "train", "validation" or "heldout".
      tasks: names of documents.TASKS.
      seed: not used; nothing is random.

    Raises:
      UserError: an unknown task or split.
    """
    for task in tasks:
        choose("task", task, dict.fromkeys(TASKS))
    return [
        Document(f"{task}/{language}/{key}", task, _segments(task, key, caption))
        for task in tasks
        if task in _MADE
        for key in pictures.split(split)
        for language, caption in pictures.info(key).captions.items()
    ]


def _segments(task: str, key: str, caption: str) -> tuple[Image | Text, ...]:
    if task == "text_to_image":
        return Text(caption, "prompt"), Image(key, "response")
    return Image(key, "prompt"), Text(caption, "response")

"""The documents of every data set of pictures: one table, data set name -> what makes its documents."""

from collections.abc import Callable, Mapping, Sequence

from nextflow_jax.config import choose
from nextflow_jax.data import captioned
from nextflow_jax.data.documents import Document
from nextflow_jax.data.pictures import PictureSet

MakeDocuments = Callable[[PictureSet, str, Sequence[str], int], list[Document]]
"""(pictures, split, tasks, seed) -> the split's documents, task after task."""


def make_documents(pictures: PictureSet, split: str, tasks: Sequence[str], seed: int) -> list[Document]:
    """All documents of these tasks that a split's pictures make; a task that they cannot make has none.

    Raises:
      UserError: an unknown task or split, or a data set without documents.
    """
    make = choose("config.pictures.name", pictures.config.name, DOCUMENTS)
    return make(pictures, split, tasks, seed)


def _openmoji(pictures: PictureSet, split: str, tasks: Sequence[str], seed: int) -> list[Document]:
    # Imported here because the data set needs packages of its own, which open_pictures has asked for.
    from nextflow_jax.data.openmoji.tasks import make_documents

    return make_documents(pictures, split, tasks, seed)


DOCUMENTS: Mapping[str, MakeDocuments] = {
    "openmoji": _openmoji,
    "photographs": captioned.make_documents,
    "folder": captioned.make_documents,
}
"""Data set name -> what makes its documents."""

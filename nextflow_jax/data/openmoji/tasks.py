"""Documents of every task that OpenMoji's captions, attributes, sequences and groups make possible.

Documents of the train split show and name train pictures alone. Those of `heldout` may start from a train picture, and
end at a held-out one. Apart from the templates below, every word comes from the `emoji` package or from Unicode.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from nextflow_jax.config import choose
from nextflow_jax.data.documents import Document, Image, Text
from nextflow_jax.data.keys import numpy_generator
from nextflow_jax.data.openmoji.families import SEQUENCES
from nextflow_jax.data.openmoji.names import LANGUAGES, sequence_keys
from nextflow_jax.data.pictures import PictureInfo, PictureSet

_FRAMES = 4
"""Frames of a document at most; the recipe's section 5 has up to 5."""
_GALLERY = 3
_MEMBERS = 6

_NEUTRAL = {"skin_tone": "neutral", "gender": "neutral", "hair": "neutral", "direction": "left"}
"""The word for a picture without the attribute."""


@dataclasses.dataclass(frozen=True)
class EditPair:
    """Two pictures that differ in one attribute, and the words that ask for the difference."""

    before_key: str
    after_key: str
    instruction: str


@dataclasses.dataclass(frozen=True)
class _Source:
    """What the documents of one split are made from."""

    pictures: PictureSet
    split: str
    seed: int

    def infos(self) -> list[PictureInfo]:
        return [self.pictures.info(key) for key in self.pictures.split(self.split)]

    def caption(self, key: str) -> str:
        return self.pictures.info(key).captions[self.pictures.config.languages[0]]

    def draw(self, items: Sequence, count: int, *names: str) -> list:
        """`count` of the items, or all, in an order that depends on the seed and the names alone."""
        order = numpy_generator(self.seed, "openmoji", *names).permutation(len(items))
        return [items[position] for position in order[:count]]


def make_documents(pictures: PictureSet, split: str, tasks: Sequence[str], seed: int) -> list[Document]:
    """Makes all documents of a split, task after task.

    Args:
      pictures: OpenMoji, any subset, size and languages.
      split: "train", "validation" or "heldout".
      tasks: names of documents.TASKS; a split without pictures for a task has no documents of it.
      seed: decides what `interleaved` and `text` documents combine; nothing else is random.

    Raises:
      UserError: an unknown task or split.
    """
    source = _Source(pictures, split, seed)
    return [document for task in tasks for document in choose("task", task, _MAKERS)(source)]


def edit_pairs(pictures: PictureSet, split: str) -> list[EditPair]:
    """All pairs of pictures of one family that differ in exactly one attribute and look different.

    Both are in `split`; for "heldout", which has no complete families, the picture before is in train. People who
    differ from one another (two skin tones) are left out: no short instruction names them.
    """
    start = "train" if split == "heldout" else split
    describable = [info for info in pictures.infos() if not any("," in value for value in info.attributes.values())]
    families = defaultdict(list)
    for info in describable:
        if info.split == start:
            families[info.family].append(info)
    return [
        EditPair(before.key, after.key, instruction)
        for after in describable
        if after.split == split
        for before in families[after.family]
        if before.pixels != after.pixels
        for instruction in _instructions(before.attributes, after.attributes)
    ]


def _instructions(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """The instruction that turns `before` into `after`, if a change of one attribute does."""
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if len(changed) == 1:
        name = changed[0]
        value = after[name] if name in after else _NEUTRAL[name]
        yield f"change the {name.replace('_', ' ')} to {value}"


def _text_to_image(source: _Source) -> Iterator[Document]:
    for info in source.infos():
        for language, caption in info.captions.items():
            segments = (Text(caption, "prompt"), Image(info.key, "response"))
            yield Document(f"text_to_image/{language}/{info.key}", "text_to_image", segments)


def _image_to_text(source: _Source) -> Iterator[Document]:
    for info in source.infos():
        for language, caption in info.captions.items():
            # A picture does not tell which of several languages is wanted; the prompt does.
            wish = () if len(info.captions) == 1 else (Text(f"caption in {LANGUAGES[language]}", "prompt"),)
            segments = (Image(info.key, "prompt"), *wish, Text(caption, "response"))
            yield Document(f"image_to_text/{language}/{info.key}", "image_to_text", segments)


def _edit(source: _Source) -> Iterator[Document]:
    for pair in edit_pairs(source.pictures, source.split):
        segments = (
            Image(pair.before_key, "prompt"),
            Text(pair.instruction, "prompt"),
            Image(pair.after_key, "response"),
        )
        yield Document(f"edit/{pair.before_key}/{pair.after_key}", "edit", segments)


def _frames(source: _Source) -> Iterator[Document]:
    """Every run of consecutive pictures of a sequence: a first frame, then name and picture of each that follows."""
    present = set(source.pictures.split(source.split))
    for sequence in SEQUENCES:
        keys = sequence_keys(sequence)
        length = min(_FRAMES, len(keys))
        for stride in sequence.strides:
            for start in range(len(keys)):
                places = range(start, start + length * stride, stride)
                run = [keys[place % len(keys)] for place in places]
                if (sequence.cyclic or places[-1] < len(keys)) and present.issuperset(run):
                    yield Document(
                        f"frames/{sequence.name}/{stride}/{start}",
                        "frames",
                        (
                            *_named_picture(source, run[0], "prompt"),
                            *(segment for key in run[1:] for segment in _named_picture(source, key, "response")),
                        ),
                    )


def _interleaved(source: _Source) -> Iterator[Document]:
    """Conversations that draw, edit and name, and galleries of a group: one of each for every picture that has them."""
    if source.split == "heldout":
        return
    edits = defaultdict(list)
    for pair in edit_pairs(source.pictures, source.split):
        edits[pair.before_key].append(pair)
    subgroups = _by_subgroup(source)
    for info in source.infos():
        for first in source.draw(edits[info.key], 1, "first edit", info.key):
            further = [pair for pair in edits[first.after_key] if pair.after_key != info.key]
            steps = [first, *source.draw(further, 1, "second edit", info.key)]
            segments = [Text(source.caption(info.key), "prompt"), Image(info.key, "response")]
            for step in steps:
                segments += [Text(step.instruction, "prompt"), Image(step.after_key, "response")]
            segments.append(Text(source.caption(steps[-1].after_key), "response"))
            yield Document(f"interleaved/edits/{info.key}", "interleaved", tuple(segments))
        others = [key for key in subgroups[info.group, info.subgroup] if key != info.key]
        shown = [info.key, *source.draw(others, _GALLERY - 1, "gallery", info.key)]
        if len(shown) == _GALLERY:
            pictures = [segment for key in shown for segment in _named_picture(source, key, "response")]
            segments = (Text(f"{info.group}, {info.subgroup}", "prompt"), *pictures)
            yield Document(f"interleaved/gallery/{info.key}", "interleaved", segments)


def _text(source: _Source) -> Iterator[Document]:
    """Facts in words: the group of a name, the names of a group, what a skin tone is added to, names in translation."""
    if source.split == "heldout":
        return

    def ask(kind: str, name: str, prompt: str, response: str) -> Document:
        return Document(f"text/{kind}/{name}", "text", (Text(prompt, "prompt"), Text(response, "response")))

    for info in source.infos():
        caption = source.caption(info.key)
        yield ask("group", info.key, f"group of {caption}", f"{info.group}, {info.subgroup}")
        if info.base != info.key and info.base in source.pictures:
            tone = info.attributes["skin_tone"]
            yield ask(
                "definition", info.key, f"definition of {caption}", f"{source.caption(info.base)}, skin tone {tone}"
            )
        for language, translation in list(info.captions.items())[1:]:
            prompt = f"{caption} in {LANGUAGES[language]}"
            yield ask(f"translation/{language}", info.key, prompt, translation)
    for (group, subgroup), keys in _by_subgroup(source).items():
        names = [source.caption(key) for key in source.draw(keys, _MEMBERS, "members", group, subgroup)]
        yield ask("members", f"{source.split}/{group}/{subgroup}", f"examples of {group}, {subgroup}", ", ".join(names))


_MAKERS: Mapping[str, Callable[[_Source], Iterator[Document]]] = {
    "text_to_image": _text_to_image,
    "image_to_text": _image_to_text,
    "edit": _edit,
    "frames": _frames,
    "interleaved": _interleaved,
    "text": _text,
}


def _named_picture(source: _Source, key: str, role: str) -> tuple[Text, Image]:
    return Text(source.caption(key), role), Image(key, role)


def _by_subgroup(source: _Source) -> dict[tuple[str, str], list[str]]:
    members = defaultdict(list)
    for info in source.infos():
        members[info.group, info.subgroup].append(info.key)
    return members

"""Documents: every split keeps to its pictures, edits say what they do, frames follow one another."""

import collections
import itertools
import json
import re

import pytest

from nextflow_jax.data.documents import TASKS, Image, Text
from nextflow_jax.data.openmoji.__main__ import main
from nextflow_jax.data.openmoji.families import SEQUENCES
from nextflow_jax.data.openmoji.names import LANGUAGES, sequence_keys
from nextflow_jax.data.openmoji.tasks import edit_pairs, make_documents
from nextflow_jax.data.pictures import PictureInfo, PicturesConfig, PictureSet
from nextflow_jax.errors import UserError

HOURS = ["twelve", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]


@pytest.fixture(scope="module")
def documents(undrawn):
    """Split -> task -> all documents of all of OpenMoji."""
    made = {}
    for split in ("train", "validation", "heldout"):
        made[split] = collections.defaultdict(list)
        for document in make_documents(undrawn, split, TASKS, seed=0):
            made[split][document.task].append(document)
    return made


def texts(document, role):
    return [segment.text for segment in document.segments if isinstance(segment, Text) and segment.role == role]


def test_every_task_of_training_has_documents_with_keys_of_their_own(documents):
    assert set(documents["train"]) == set(TASKS)
    assert set(documents["heldout"]) == {"text_to_image", "image_to_text", "edit"}
    assert set(documents["validation"]) == set(TASKS)
    keys = [document.key for tasks in documents.values() for made in tasks.values() for document in made]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_documents_show_pictures_of_their_split_alone(undrawn, documents, split):
    for made in documents[split].values():
        for document in made:
            assert {undrawn.info(key).split for key in document.image_keys()} <= {split}, document


def test_heldout_documents_end_at_a_heldout_picture(undrawn, documents):
    for made in documents["heldout"].values():
        for document in made:
            *before, last = document.image_keys()
            assert undrawn.info(last).split == "heldout"
            assert all(undrawn.info(key).split == "train" for key in before)


def test_training_texts_name_no_picture_of_another_split(undrawn, documents):
    trained = {info.captions["en"] for info in undrawn.infos() if info.split == "train"}
    hidden = {info.captions["en"] for info in undrawn.infos()} - trained
    for made in documents["train"].values():
        for document in made:
            for text in (*texts(document, "prompt"), *texts(document, "response")):
                assert text not in hidden, document
                if document.key.startswith("text/members"):
                    assert not hidden.intersection(text.split(", "))


def test_pictures_and_captions_in_every_language(undrawn, documents):
    captions = {
        (key, language): text for key in undrawn.keys() for language, text in undrawn.info(key).captions.items()
    }
    drawn, named = {}, {}
    for split in documents:
        for document in documents[split]["text_to_image"]:
            caption, picture = document.segments
            assert (caption.role, picture.role) == ("prompt", "response")
            drawn[picture.key, document.key.split("/")[1]] = caption.text
        for document in documents[split]["image_to_text"]:
            picture, wish, caption = document.segments
            assert (picture.role, wish.role, caption.role) == ("prompt", "prompt", "response")
            language = next(code for code in undrawn.config.languages if wish.text.endswith(LANGUAGES[code]))
            named[picture.key, language] = caption.text
    assert drawn == named == captions


def test_one_language_needs_no_word_about_it(tiny):
    for document in make_documents(tiny, "train", ["image_to_text"], seed=0):
        picture, caption = document.segments
        assert caption == Text(tiny.info(picture.key).captions["en"], "response")
    assert not any(
        "in English" in text for d in make_documents(tiny, "train", ["text"], 0) for text in texts(d, "prompt")
    )


def test_edits_change_what_the_instruction_says_and_nothing_else(undrawn):
    pairs = [pair for split in ("train", "validation", "heldout") for pair in edit_pairs(undrawn, split)]
    kinds = collections.Counter()
    for pair in pairs:
        kind, value = re.fullmatch(r"change the (.+) to (.+)", pair.instruction).groups()
        name = kind.replace(" ", "_")
        kinds[name] += 1
        before, after = (dict(undrawn.info(key).attributes) for key in (pair.before_key, pair.after_key))
        neutral = "left" if name == "direction" else "neutral"
        assert after.pop(name, neutral) == value != before.pop(name, neutral)
        assert before == after
        assert undrawn.info(pair.before_key).family == undrawn.info(pair.after_key).family
    assert set(kinds) == {"skin_tone", "gender", "hair", "direction", "colour"}
    answers = {(pair.before_key, pair.instruction) for pair in pairs}
    assert len(answers) == len(pairs), "an instruction has to have one right answer"


def test_skin_tone_edits_of_one_base_are_complete(undrawn):
    trained = collections.Counter(info.base for info in undrawn.infos() if info.split == "train")
    single = [info for info in undrawn.infos() if "," not in info.attributes.get("skin_tone", "")]
    members = collections.Counter(info.base for info in single if info.split == "train")
    made = collections.Counter(
        undrawn.info(pair.after_key).base for pair in edit_pairs(undrawn, "train") if "skin tone" in pair.instruction
    )
    for base, count in members.items():
        if "," not in "".join(undrawn.info(base).attributes.values()) and trained[base]:
            assert made[base] == count * (count - 1)


def test_pictures_that_look_the_same_are_no_edit():
    looks = {"artist": ("1", {}), "man": ("1", {"gender": "male"}), "woman": ("2", {"gender": "female"})}
    infos = [
        PictureInfo(key, "train", {"en": key}, "group", "subgroup", key, "artist", attributes, pixels)
        for key, (pixels, attributes) in looks.items()
    ]
    pictures = PictureSet(PicturesConfig(), infos, lambda position: pytest.fail("looked at"), {})
    found = {(pair.before_key, pair.after_key) for pair in edit_pairs(pictures, "train")}
    assert found == {("artist", "woman"), ("man", "woman"), ("woman", "artist"), ("woman", "man")}


def test_frames_follow_one_another(undrawn, documents):
    for document in documents["train"]["frames"]:
        _, name, stride, start = document.key.split("/")
        pictures = document.image_keys()
        sequence = next(sequence for sequence in SEQUENCES if sequence.name == name)
        ordered = sequence_keys(sequence) * (2 if sequence.cyclic else 1)
        assert pictures == ordered[int(start) :: int(stride)][: len(pictures)]
        captions = [segment.text for segment in document.segments if isinstance(segment, Text)]
        assert captions == [undrawn.info(key).captions["en"] for key in pictures]
        assert [segment.role for segment in document.segments] == ["prompt"] * 2 + ["response"] * 2 * (
            len(pictures) - 1
        )
        if name == "clock":
            times = [60 * HOURS.index(re.split("-| ", text)[0]) + 30 * text.endswith("thirty") for text in captions]
            steps = {(after - before) % 720 for before, after in itertools.pairwise(times)}
            assert steps == {30 * int(stride)}
    names = collections.Counter(document.key.split("/")[1] for document in documents["train"]["frames"])
    assert names["clock"] == 48 and names["moon"] == 8
    assert {document.key.split("/")[1] for document in documents["validation"]["frames"]} == {"compass"}


def test_edit_conversations_are_chains_of_single_edits(undrawn, documents):
    steps = {(pair.before_key, pair.instruction): pair.after_key for pair in edit_pairs(undrawn, "train")}
    chains = [d for d in documents["train"]["interleaved"] if d.key.startswith("interleaved/edits")]
    assert any(len(document.image_keys()) == 3 for document in chains)
    for document in chains:
        first, *pictures = document.image_keys()
        assert len({first, *pictures}) == len(document.image_keys())
        caption, *instructions = texts(document, "prompt")
        assert caption == undrawn.info(first).captions["en"]
        for instruction, picture in zip(instructions, pictures, strict=True):
            first = steps[first, instruction]
            assert first == picture
        assert texts(document, "response") == [undrawn.info(first).captions["en"]]
        assert all(segment.role == "response" for segment in document.segments if isinstance(segment, Image))


def test_galleries_stay_in_their_group(undrawn, documents):
    galleries = [d for d in documents["train"]["interleaved"] if d.key.startswith("interleaved/gallery")]
    assert galleries
    for document in galleries:
        keys = document.image_keys()
        assert len(set(keys)) == len(keys) == 3
        places = {f"{undrawn.info(key).group}, {undrawn.info(key).subgroup}" for key in keys}
        assert places == set(texts(document, "prompt"))


def test_seed_decides_combinations_alone(tiny):
    first, again, other = (make_documents(tiny, "train", TASKS, seed) for seed in (0, 0, 1))
    assert first == again
    changed = {a.task for a, b in zip(first, other, strict=True) if a != b}
    assert changed == {"interleaved", "text"}
    assert [d.key for d in first] == [d.key for d in other]


def test_unknown_tasks_and_splits_are_named(tiny):
    with pytest.raises(UserError, match="task 'text_to_imag' is not known; did you mean text_to_image"):
        make_documents(tiny, "train", ["text_to_imag"], seed=0)
    with pytest.raises(UserError, match="split 'test' is not known"):
        make_documents(tiny, "test", TASKS, seed=0)


def test_the_command_counts_what_it_built(tiny, tiny_config, capsys):
    main(["--root", tiny_config.root, "--size", "16x16", "--subset", "tiny"])
    counts = json.loads(capsys.readouterr().out)
    assert counts["pictures"] == 27 and counts["fingerprint"] == tiny.fingerprint
    assert counts["splits"] == {"train": 21, "validation": 3, "heldout": 3}
    assert counts["documents"]["train"]["text_to_image"] == 21
    assert counts["documents"]["heldout"]["edit"] == len(edit_pairs(tiny, "heldout")) > 0
    with pytest.raises(UserError, match="--size 16: expects HEIGHTxWIDTH"):
        main(["--size", "16"])

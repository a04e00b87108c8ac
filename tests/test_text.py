"""Text tokenizers: nothing is lost on the way through, equal files are equal, mistakes are named."""

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from nextflow_jax import text
from nextflow_jax.config import preflight
from nextflow_jax.errors import UserError
from tests import qwen_folder

PEOPLE = ("artist", "cook", "pilot", "singer", "judge", "farmer", "student", "teacher")
CORPUS = [
    "red heart",
    "赤いハート",
    *(f"{who} {tone} skin tone" for who in PEOPLE for tone in ("dark", "medium", "light")),
]


@pytest.fixture(scope="module")
def trained():
    return text.train_sentencepiece(CORPUS, vocab_size=400)


@pytest.fixture(scope="module")
def hugging_face_file(tmp_path_factory):
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(CORPUS, trainer)
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    path = tmp_path_factory.mktemp("hugging_face") / "tokenizer.json"
    model.save(str(path))
    return path


@settings(deadline=None)
@given(st.text().filter(lambda value: "\u2581" not in value))
def test_any_text_survives_sentencepiece(trained, value):
    ids = trained.encode(value)
    assert all(0 <= index < trained.size for index in ids)
    assert trained.decode(ids) == value


@settings(deadline=None)
@given(st.text())
def test_any_text_survives_a_byte_level_file(hugging_face_file, value):
    tokenizer = text.load_text_tokenizer(hugging_face_file)
    ids = tokenizer.encode(value)
    assert all(0 <= index < tokenizer.size for index in ids)
    assert tokenizer.decode(ids) == value


def test_training_is_deterministic_and_depends_on_the_texts(trained):
    assert text.train_sentencepiece(CORPUS, vocab_size=400).fingerprint == trained.fingerprint
    assert text.train_sentencepiece(CORPUS[:9], vocab_size=400).fingerprint != trained.fingerprint


def test_whole_phrases_become_pieces_unless_split(trained):
    split = text.train_sentencepiece(CORPUS, vocab_size=400, split_by_whitespace=True)
    phrase = "dark skin tone"
    assert len(trained.encode(phrase)) < len(split.encode(phrase))
    assert len(split.encode(phrase)) >= 3


def test_vocabulary_is_bounded_and_shrinks_with_the_corpus(trained):
    assert trained.size <= 400
    assert text.train_sentencepiece(["a b"], vocab_size=1500).size < 300


@pytest.mark.parametrize("kind", ["sentencepiece", "hugging_face"])
def test_saved_tokenizers_load_equal(kind, trained, hugging_face_file, tmp_path):
    original = trained if kind == "sentencepiece" else text.load_text_tokenizer(hugging_face_file)
    assert isinstance(original, text.TextTokenizer)
    original.save(tmp_path / original.file_name)
    for path in (tmp_path, tmp_path / original.file_name):
        loaded = text.load_text_tokenizer(path)
        assert type(loaded) is type(original)
        assert loaded.fingerprint == original.fingerprint
        assert loaded.size == original.size
        assert loaded.encode("red heart") == original.encode("red heart")


def test_special_tokens_of_a_file_are_not_added(hugging_face_file):
    tokenizer = text.load_text_tokenizer(hugging_face_file)
    assert 0 not in tokenizer.encode("red heart")
    assert tokenizer.encode("<|endoftext|>") == [0]
    assert tokenizer.decode([0]) == "<|endoftext|>"


def test_size_counts_gaps_between_ids(hugging_face_file, tmp_path):
    content = json.loads(hugging_face_file.read_text())
    content["model"]["vocab"]["zzz"] = 999
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    assert text.load_text_tokenizer(path).size == 1000


def test_missing_and_corrupt_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.model: no text tokenizer there"):
        text.load_text_tokenizer(tmp_path / "nowhere.model")
    with pytest.raises(UserError, match=r"expects .*text_tokenizer.model or .*tokenizer.json"):
        text.load_text_tokenizer(tmp_path)
    for name in ("broken.model", "broken.json"):
        (tmp_path / name).write_bytes(b"\xff broken")
        with pytest.raises(UserError, match=rf"{name}: not a "):
            text.load_text_tokenizer(tmp_path / name)


def test_training_without_texts_or_with_too_few_pieces_is_refused():
    with pytest.raises(UserError, match="needs texts"):
        text.train_sentencepiece(["", "  "], vocab_size=300)
    with pytest.raises(UserError, match="vocab_size = 100"):
        preflight(text.TextTokenizerConfig(vocab_size=100))
    with pytest.raises(UserError, match="no such file or folder"):
        preflight(text.TextTokenizerConfig(path="/nowhere/tokenizer.json"))


def test_configured_path_comes_before_training(trained, tmp_path):
    trained.save(tmp_path / "text_tokenizer.model")
    given_path = text.make_text_tokenizer(text.TextTokenizerConfig(path=str(tmp_path)), ["other texts"])
    assert given_path.fingerprint == trained.fingerprint
    made = text.make_text_tokenizer(text.TextTokenizerConfig(vocab_size=400), CORPUS)
    assert made.fingerprint == trained.fingerprint


def test_added_tokens_are_ids_and_a_template_travels_with_the_file(tmp_path):
    folder = qwen_folder.make(tmp_path / "qwen")
    tokenizer = text.load_text_tokenizer(folder)
    chat = "<|im_start|>user\na red sun<|im_end|>\n"
    ids = tokenizer.encode(chat)
    assert ids[0] == 86 and ids[-2] == 81 and len(ids) == len("user\na red sun\n") + 2
    assert tokenizer.decode(ids) == chat and tokenizer.size == 87
    # Rows of a padded table that no id has: a model may draw one, and it is no text.
    assert tokenizer.decode([*ids, 88, 89]) == chat
    (tmp_path / "run").mkdir()
    tokenizer.save(tmp_path / "run" / tokenizer.file_name)
    copied = text.load_text_tokenizer(tmp_path / "run")
    assert (copied.chat_template, copied.fingerprint) == (qwen_folder.TEMPLATE, tokenizer.fingerprint)
    (tmp_path / "run" / "chat_template.jinja").unlink()
    assert text.load_text_tokenizer(tmp_path / "run" / "tokenizer.json").chat_template == ""

"""The unified vocabulary: kinds of ids never overlap."""

from nextflow_jax.vocabulary import SPECIALS, Vocabulary


def test_kinds_of_ids_do_not_overlap_and_fit():
    vocabulary = Vocabulary(text_size=1000, codebook_size=512, pad_multiple=128)
    specials = [getattr(vocabulary, name) for name in SPECIALS]
    assert specials == list(range(1000, 1005))
    assert vocabulary.code_ids(0) == 1005 and vocabulary.used == vocabulary.code_ids(511) + 1
    assert vocabulary.size % 128 == 0 and 0 <= vocabulary.size - vocabulary.used < 128


def test_qwen_sized_vocabulary_shards():
    assert Vocabulary(text_size=152064, codebook_size=32768, pad_multiple=512).size == 185344


def test_empty_parts_are_faults():
    assert [fault.field for fault in Vocabulary(0, 0, 128).faults()] == ["text_size", "codebook_size"]

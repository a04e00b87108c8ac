import pickle

import numpy as np
import pytest

from nextflow_jax.data.corpus.raw import Drop
from nextflow_jax.data.corpus.reasons import FILTERED
from nextflow_jax.data.filters.config import BucketFilter, FiltersConfig, PictureFilter, TextFilter
from nextflow_jax.data.filters.steps import make_filters
from tests.data.filters.conftest import document


def outcome(config, one):
    result = make_filters(config)(one)
    return result.reason if isinstance(result, Drop) else "kept"


PICTURES = {
    "min_side": (PictureFilter(min_side=64), (64, 100), (63, 100), "small picture"),
    "min_side, wide": (PictureFilter(min_side=64), (100, 64), (100, 63), "small picture"),
    "min_pixels": (PictureFilter(min_pixels=4800), (60, 80), (60, 79), "small picture"),
    "max_ratio": (PictureFilter(max_ratio=2.5), (40, 100), (40, 101), "extreme ratio"),
    "max_ratio, tall": (PictureFilter(max_ratio=2.5), (100, 40), (101, 40), "extreme ratio"),
    "max_ratio 1": (PictureFilter(max_ratio=1.0), (40, 40), (40, 41), "extreme ratio"),
}
BUCKETS = {
    "no zoom": (BucketFilter(sizes=((64, 64), (32, 128))), (64, 64), (63, 64), "low resolution"),
    "zoom": (BucketFilter(sizes=((64, 64), (32, 128)), max_zoom=2.0), (16, 64), (15, 64), "low resolution"),
    "crop": (BucketFilter(sizes=((64, 64),), max_crop=0.25), (75, 100), (74, 100), "outside buckets"),
}
TEXTS = {
    "min_characters": (TextFilter(min_characters=3), " abc\n", " ab \n", "short text"),
    "max_characters": (TextFilter(max_characters=3), " äöü ", "abcd", "long text"),
    "scripts": (TextFilter(scripts=("Latin", "Greek"), min_script_share=0.75), "abα ж", "abα жж", "other script"),
}


@pytest.mark.parametrize(("settings", "kept", "dropped", "reason"), PICTURES.values(), ids=PICTURES)
def test_pictures_are_kept_up_to_the_limit_and_dropped_past_it(settings, kept, dropped, reason):
    config = FiltersConfig(pictures=settings)
    assert outcome(config, document(kept, "text")) == "kept"
    assert outcome(config, document(dropped, "text")) == reason
    assert outcome(config, document(kept, dropped)) == reason, "one such picture is enough"
    assert outcome(config, document("text")) == "kept"


@pytest.mark.parametrize(("settings", "kept", "dropped", "reason"), BUCKETS.values(), ids=BUCKETS)
def test_pictures_fill_their_bucket_or_go(settings, kept, dropped, reason):
    config = FiltersConfig(buckets=settings)
    assert outcome(config, document(kept, "text")) == "kept"
    assert outcome(config, document(kept, dropped)) == reason


def test_what_a_bucket_cuts_off_is_what_cropping_cuts_off():
    """A 75 x 100 picture fills 64 x 64 with its middle 75 x 75."""
    share = 1 - 75 * 75 / (75 * 100)
    for allowed, expected in ((share, "kept"), (share - 0.01, "outside buckets")):
        config = FiltersConfig(buckets=BucketFilter(sizes=((64, 64),), max_crop=allowed))
        assert outcome(config, document((75, 100))) == expected


@pytest.mark.parametrize(("settings", "kept", "dropped", "reason"), TEXTS.values(), ids=TEXTS)
def test_texts_are_kept_up_to_the_limit_and_dropped_past_it(settings, kept, dropped, reason):
    config = FiltersConfig(texts=settings)
    assert outcome(config, document(kept, task="image_to_text")) == "kept"
    assert outcome(config, document(dropped, task="image_to_text")) == reason


def test_text_lengths_are_of_all_texts_together_and_of_the_named_tasks_alone():
    config = FiltersConfig(texts=TextFilter(min_characters=4, max_characters=6, tasks=("edit",)))
    assert outcome(config, document(" ab ", "cd", task="edit")) == "kept"
    assert outcome(config, document("ab", "c", task="edit")) == "short text"
    assert outcome(config, document("abc", "defg", task="edit")) == "long text"
    assert outcome(config, document("a", task="text")) == "kept"


def test_text_without_letters_passes_any_script():
    config = FiltersConfig(texts=TextFilter(scripts=("Thai",)))
    assert outcome(config, document("42 🐱!")) == "kept" and outcome(config, document((9, 9))) == "kept"


def test_the_label_may_become_the_bucket_of_the_first_picture():
    buckets = BucketFilter(sizes=((64, 64), (32, 128)), max_zoom=9.0, as_label=True)
    step = make_filters(FiltersConfig(buckets=buckets))
    assert step(document("a", (20, 80), (64, 64), label="mine")).label == "32x128"
    assert step(document("a", label="mine")).label == "mine"
    unlabelled = make_filters(FiltersConfig(buckets=BucketFilter(sizes=((64, 64),), max_zoom=9.0)))
    assert unlabelled(document((64, 64), label="mine")).label == "mine"


def test_defaults_keep_every_document_as_it_is():
    step = make_filters(FiltersConfig())
    for one in (document((1, 900)), document(""), document("日本", (16, 16), label="x")):
        assert step(one) is one


def test_the_first_step_that_drops_gives_the_reason():
    config = FiltersConfig(
        pictures=PictureFilter(min_side=50, max_ratio=2.0), texts=TextFilter(max_characters=2, tasks=("interleaved",))
    )
    assert outcome(config, document((49, 500), "long")) == "small picture"
    assert outcome(config, document((50, 500), "long")) == "extreme ratio"
    assert outcome(config, document((50, 100), "long")) == "long text"
    assert make_filters(config)(document((49, 500), key="a/b")) == Drop("a/b", "small picture")


def test_each_document_has_one_outcome_and_reasons_are_filters():
    config = FiltersConfig(
        pictures=PictureFilter(min_side=30, max_ratio=3.0),
        buckets=BucketFilter(sizes=((64, 64),), max_zoom=1.5, max_crop=0.4),
        texts=TextFilter(min_characters=2, max_characters=5, tasks=("interleaved",), scripts=("Latin",)),
    )
    rng = np.random.default_rng(0)
    counts = {}
    for _ in range(400):
        size = tuple(rng.integers(16, 200, 2).tolist())
        text = "".join(rng.choice(["a", "ж"], rng.integers(0, 8), p=[0.9, 0.1]))
        reason = outcome(config, document(size, text))
        counts[reason] = counts.get(reason, 0) + 1
    assert sum(counts.values()) == 400
    expected = {"small picture", "extreme ratio", "low resolution", "outside buckets", "short text", "long text"}
    assert set(counts) == {"kept", "other script", *expected}
    assert set(counts) - {"kept"} <= set(FILTERED)


def test_filters_travel_to_workers():
    step = pickle.loads(pickle.dumps(make_filters(FiltersConfig(pictures=PictureFilter(min_side=20)))))
    assert step(document((10, 10), key="a")) == Drop("a", "small picture")

import pathlib
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextflow_jax.data import filters
from nextflow_jax.data.corpus.reasons import FILTERED
from nextflow_jax.data.filters.columns import to_columns
from nextflow_jax.data.filters.config import BalanceConfig, DuplicatesConfig, FiltersConfig
from nextflow_jax.data.filters.selection import select
from nextflow_jax.errors import UserError
from tests.data.filters.conftest import flip, make_fingerprint
from tests.data.filters.test_duplicates import many_columns

EVERYTHING = FiltersConfig(
    duplicates=DuplicatesConfig(same_pictures=True, near_distance=4, repeats_of_text=2),
    balance=BalanceConfig(max_per_label=3),
)


DEFAULTS = FiltersConfig()


def kept(made, config=DEFAULTS, seed=0):
    selection = select(to_columns(made), config, seed)
    assert selection.kept.sum() + sum(selection.dropped.values()) == len(made)
    assert 0 not in selection.dropped.values()
    return selection.kept.tolist(), selection.dropped


def test_repeated_keys_always_go():
    made = [make_fingerprint("a"), make_fingerprint("b"), make_fingerprint("a", content="other")]
    config = FiltersConfig(duplicates=DuplicatesConfig(exact=False))
    assert kept(made, config) == ([True, True, False], {"repeated key": 1})


def test_exact_duplicates_are_of_one_task():
    made = [
        make_fingerprint("a", content="x"),
        make_fingerprint("b", content="x"),
        make_fingerprint("c", "image_to_text", content="x"),
    ]
    assert kept(made) == ([True, False, True], {"exact duplicate": 1})
    assert kept(made, FiltersConfig(duplicates=DuplicatesConfig(exact=False))) == ([True] * 3, {})


def test_same_pictures_go_when_asked_whatever_their_texts():
    made = [
        make_fingerprint("a", pictures=[5], text="one"),
        make_fingerprint("b", pictures=[5], text="two"),
        make_fingerprint("c", "image_to_text", pictures=[5]),
        make_fingerprint("d", "text", text="x"),
        make_fingerprint("e", "text", text="x"),
    ]
    config = FiltersConfig(duplicates=DuplicatesConfig(same_pictures=True))
    assert kept(made) == ([True] * 5, {})
    assert kept(made, config) == ([True, False, True, True, True], {"repeated pictures": 1})


def test_near_duplicates_go_when_asked():
    made = [make_fingerprint(str(i), pictures=[flip(1 << 50, range(i))]) for i in (0, 4, 5)]
    assert kept(made) == ([True] * 3, {})
    near = FiltersConfig(duplicates=DuplicatesConfig(near_distance=4))
    assert kept(made, near) == ([True, False, True], {"near duplicate": 1})


def test_texts_may_be_repeated_as_often_as_is_said():
    made = [make_fingerprint(str(i), "text", text="same") for i in range(4)]
    made += [make_fingerprint(f"c{i}", "image_to_text", pictures=[i], text="same") for i in range(4)]
    made += [make_fingerprint(f"n{i}", "text") for i in range(3)]
    config = FiltersConfig(duplicates=DuplicatesConfig(repeats_of_text=2))
    assert kept(made, config) == ([True, True, False, False] + [True] * 7, {"repeated text": 2})
    both = FiltersConfig(duplicates=DuplicatesConfig(repeats_of_text=3, text_tasks=("text", "image_to_text")))
    assert kept(made, both)[1] == {"repeated text": 2}


def test_what_is_gone_makes_nothing_else_a_duplicate():
    """b repeats a's key; c has the content of b, which is gone."""
    made = [make_fingerprint("a", content="x"), make_fingerprint("a", content="y"), make_fingerprint("c", content="y")]
    assert kept(made) == ([True, False, True], {"repeated key": 1})


def test_labels_are_balanced_after_duplicates_are_gone():
    made = [make_fingerprint(str(i), label="cat", content=str(i % 3)) for i in range(9)]
    config = FiltersConfig(balance=BalanceConfig(max_per_label=3))
    assert kept(made, config) == ([True] * 3 + [False] * 6, {"exact duplicate": 6})


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(0, 60))
def test_every_document_is_kept_or_counted_once(seed, count):
    rng = np.random.default_rng(seed)
    made = [
        make_fingerprint(
            str(rng.integers(count)),
            str(rng.choice(["text", "edit"])),
            [flip(0, rng.integers(0, 64, 5)) for _ in range(rng.integers(0, 2))],
            str(rng.integers(9)),
            str(rng.integers(4)),
            content=str(rng.integers(count)),
        )
        for _ in range(count)
    ]
    stay, dropped = kept(made, EVERYTHING)
    assert set(dropped) <= set(FILTERED)
    if count:
        assert any(stay)
    survivors = [one for one, here in zip(made, stay) if here]
    assert all(kept(survivors, EVERYTHING)[0]), "what is selected would be selected again"


def test_the_seed_matters_to_the_balance_alone():
    made = [make_fingerprint(str(i), pictures=[i % 7], label=str(i % 2)) for i in range(60)]
    alike = FiltersConfig(duplicates=EVERYTHING.duplicates)
    assert kept(made, alike, 0) == kept(made, alike, 1)
    balanced = FiltersConfig(duplicates=DuplicatesConfig(exact=False), balance=BalanceConfig(max_per_label=10))
    assert kept(made, balanced, 0)[0] == kept(made, balanced, 0)[0] != kept(made, balanced, 1)[0]


def test_no_documents_and_missing_columns():
    assert kept([], EVERYTHING) == ([], {})
    columns = to_columns([make_fingerprint("a")])
    del columns["label"]
    with pytest.raises(UserError, match="no column label"):
        select(columns, EVERYTHING, 0)


def test_two_hundred_thousand_documents_are_selected_quickly():
    columns = many_columns(200_000)
    columns["label"] = columns["key"] % np.uint64(1000) + np.uint64(1)
    config = FiltersConfig(duplicates=EVERYTHING.duplicates, balance=BalanceConfig(max_times_median=1.0))
    start = time.perf_counter()
    selection = select(columns, config, 0)
    assert time.perf_counter() - start < 60
    assert set(selection.dropped) == {"near duplicate", "label cap"}


def test_every_reason_of_the_filters_is_in_the_table():
    """Drop checks its own when it is made; these are found in the source."""
    source = "".join(path.read_text() for path in pathlib.Path(filters.__file__).parent.glob("*.py"))
    used = set(re.findall(r'(?:Drop\(document\.key, |drop\()"([^"]+)"', source))
    assert len(used) >= 13 and used <= set(FILTERED)

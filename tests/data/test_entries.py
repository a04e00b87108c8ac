import numpy as np
import pytest

from nextflow_jax.data import entries
from tests.data.made_index import make_index


@pytest.fixture(scope="module")
def index():
    return make_index({("text", "wiki"): 3, ("text", "books"): 4, ("edit", "wiki"): 5, ("edit", ""): 2})


@pytest.mark.parametrize(
    ("entry", "count"),
    [("all", 14), ("text", 7), ("edit", 7), ("@wiki", 8), ("text@wiki", 3), ("edit@", 2), ("text@", 0), ("@", 2),
     ("story", 0), ("@web", 0)],
)  # fmt: skip
def test_an_entry_has_the_documents_of_its_task_and_source(index, entry, count):
    members = entries.members(entry, index)
    assert members.sum() == count
    task, at, source = entry.partition("@")
    for record in np.flatnonzero(members):
        assert task in ("", "all", index.tasks[index.task[record]])
        assert not at or source == index.sources[index.source[record]]


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (("*",), ["edit", "text"]),
        (("@*",), ["@", "@books", "@wiki"]),
        (("*@wiki",), ["edit@wiki", "text@wiki"]),
        (("edit", "*"), ["edit", "text"]),
        (("text@*", "edit"), ["text@books", "text@wiki", "edit"]),
        (("*@*", "text@wiki"), ["edit@", "edit@wiki", "text@books", "text@wiki"]),
        (("story", "all"), ["story", "all"]),
    ],
)
def test_stars_stand_for_what_there_is(index, patterns, found):
    assert entries.find_entries(patterns, index, np.ones(14, bool)) == found


def test_stars_look_at_usable_documents_alone(index):
    usable = index.task == index.tasks.index("text")
    assert entries.find_entries(("*@*",), index, usable) == ["text@books", "text@wiki"]
    assert entries.entries_like("all", index, usable) == ["all"]


def test_a_table_says_of_an_entry_its_own_before_a_stars():
    table = (("text@*", 1.0), ("text@wiki", 2.0), ("*", 3.0))
    found = {
        name: entries.value(name, table) for name in ("text@wiki", "text@web", "edit", "edit@wiki", "@wiki", "all")
    }
    assert found == {"text@wiki": 2.0, "text@web": 1.0, "edit": 3.0, "edit@wiki": None, "@wiki": None, "all": None}
    assert entries.has_star("text@*") and not entries.has_star("text@wiki")

"""Accounts of entries, and a ledger against a scripted clock; runs are accounted for in test_loop.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextflow_jax.training.goodput import GOODPUT_FILE, PHASES, Entry, Ledger, account, read_entries


class Clock:
    """Moves only when told to; `wall` runs 1000 s ahead of it and is set anew by `jump`."""

    def __init__(self):
        self.now = 0.0
        self.offset = 1000.0

    def __call__(self):
        return self.now

    def wall(self):
        return self.now + self.offset

    def ledger(self, folder):
        return Ledger(folder, self, self.wall)


def test_every_second_has_a_phase(tmp_path):
    clock = Clock()
    ledger = clock.ledger(tmp_path)
    clock.now += 2
    with ledger.phase("compile"):
        clock.now += 5
    ledger.stand_at(0)
    with ledger.phase("step"):
        clock.now += 10
        ledger.charge("data_wait", 3.0)
        with ledger.phase("checkpoint"):
            clock.now += 1
        ledger.write(4)
    expected = {"init": 2, "compile": 5, "step": 7, "data_wait": 3, "checkpoint": 1}
    assert ledger.account().seconds == pytest.approx({**dict.fromkeys(PHASES, 0), **expected})
    assert ledger.account().goodput == pytest.approx(7 / 18)
    assert account(read_entries(tmp_path)).seconds == pytest.approx(ledger.account().seconds)
    assert ledger.account().describe().startswith("goodput 38.9% of 18 s: init 11.1%, compile 27.8%")


def test_what_a_crash_cost(tmp_path):
    clock = Clock()
    ledger = clock.ledger(tmp_path)
    ledger.stand_at(0)
    with ledger.phase("step"):
        clock.now += 40
        ledger.write(40)
    with (tmp_path / GOODPUT_FILE).open("a") as file:
        file.write('{"attempt": 1, "be')
    # Killed; started again 6 s later from the checkpoint of step 25.
    clock.now += 6
    ledger = clock.ledger(tmp_path)
    with ledger.phase("restore"):
        clock.now += 2
    ledger.stand_at(25)
    with ledger.phase("step"):
        clock.now += 30
        ledger.write(55)
    total = ledger.account()
    expected = {"restart": 6, "restore": 2, "lost": 15, "step": 25 + 30}
    assert total.seconds == pytest.approx({**dict.fromkeys(PHASES, 0), **expected})
    assert total.wall == pytest.approx(clock.now) and total.attempts == 2
    assert account(read_entries(tmp_path)).seconds == pytest.approx(total.seconds)
    assert len((tmp_path / GOODPUT_FILE).read_text().splitlines()) == 5


def test_going_back_within_an_attempt_loses_steps(tmp_path):
    clock = Clock()
    ledger = clock.ledger(tmp_path)
    ledger.stand_at(0)
    with ledger.phase("step"):
        clock.now += 10
        ledger.write(10)
        clock.now += 4
        ledger.write(12)
        with ledger.phase("restore"):
            clock.now += 1
        ledger.stand_at(5)
        clock.now += 7
        ledger.write(12)
    assert ledger.account().seconds == pytest.approx(
        {**dict.fromkeys(PHASES, 0), "lost": 5 + 4, "step": 5 + 7, "restore": 1}
    )


def test_a_clock_set_back_makes_no_negative_restart():
    entries = [Entry(1, 100.0, 110.0, 0, 10, {"step": 10.0}), Entry(2, 90.0, 95.0, 10, 15, {"step": 5.0})]
    assert account(entries).seconds["restart"] == 0 and account(entries).wall == 15


@st.composite
def histories(draw):
    """Entries of attempts that go on from some step done before, a second a step."""
    now, done, entries = 0.0, 0, []
    for attempt in range(1, draw(st.integers(1, 5)) + 1):
        now += draw(st.integers(0, 9))
        done = draw(st.integers(0, done))
        for length in draw(st.lists(st.integers(0, 7), max_size=4)):
            entries.append(Entry(attempt, now, now + length, done, done + length, {"step": float(length)}))
            now, done = now + length, done + length
    return entries, done


@given(histories())
def test_steps_that_last_are_those_of_the_state(history):
    entries, _ = history
    total = account(entries)
    assert total.seconds["step"] == pytest.approx(entries[-1].last if entries else 0)
    begin, end = (entries[0].begin, entries[-1].end) if entries else (0, 0)
    assert total.wall == pytest.approx(end - begin)

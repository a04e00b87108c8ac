import itertools
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextflow_jax.data.filters.scripts import SCRIPTS, count_scripts, script_share

# The first article of the Universal Declaration of Human Rights begins with "All human beings are born free".
SAMPLES = {
    "Latin": ["All human beings are born free", "Tất cả mọi người sinh ra đều được tự do", "Všichni lidé rodí se"],
    "Cyrillic": ["Все люди рождаются свободными", "Всі люди народжуються вільними"],
    "Greek": ["Όλοι οι άνθρωποι γεννιούνται ελεύθεροι"],
    "Arabic": ["يولد جميع الناس أحرارًا", "تمام افراد بشر آزاد به دنیا می‌آیند"],
    "Hebrew": ["כל בני האדם נולדו בני חורין"],
    "Han": ["人人生而自由"],
    "Hangul": ["모든 인간은 태어날 때부터 자유로우며"],
    "Kana": ["すべてのひとは うまれながらに", "スベテノヒト"],
    "Devanagari": ["सभी मनुष्यों को गौरव और अधिकारों"],
    "Thai": ["มนุษย์ทั้งหลายเกิดมามีอิสระ"],
    "Armenian": ["Բոլոր մարդիկ ծնվում են ազատ"],
    "Georgian": ["ყველა ადამიანი იბადება თავისუფალი"],
    "Tamil": ["மனிதப் பிறவியினர் சகலரும்"],
    "Ethiopic": ["የሰው ልጅ ሁሉ ሲወለድ ነጻ"],
    "Bengali": ["সমস্ত মানুষ স্বাধীনভাবে"],
    "Khmer": ["មនុស្សទាំងអស់កើតមក"],
}


@pytest.mark.parametrize(("script", "text"), [(script, text) for script in SAMPLES for text in SAMPLES[script]])
def test_samples_are_of_their_script_alone(script, text):
    assert set(count_scripts(text)) == {script}
    assert script_share(text, [script]) == 1.0
    assert script_share(text, [other for other in SCRIPTS if other != script]) == 0.0


def test_japanese_is_of_two_scripts():
    counts = count_scripts("すべての人間は、生まれながらにして自由であり")
    assert counts == {"Han": 5, "Kana": 16}


def test_shares_are_of_letters():
    assert script_share("abc где 123 !?", ["Latin"]) == 0.5
    assert script_share("abc где", ["Latin", "Cyrillic"]) == 1.0


@pytest.mark.parametrize("text", ["", "123 456", "!?…", "🐱👍🏽", "\u0301"])
def test_text_without_letters_is_of_every_script(text):
    assert count_scripts(text) == {} and script_share(text, ["Greek"]) == 1.0


def test_letters_of_no_known_script_are_counted():
    assert count_scripts("ᚠᚢ a ʃ") == {"Latin": 1, "other": 3}


def test_ranges_do_not_overlap():
    ranges = sorted(bounds for script in SCRIPTS.values() for bounds in script)
    assert all(first <= last for first, last in ranges)
    assert all(one[1] < other[0] for one, other in itertools.pairwise(ranges))


@pytest.mark.parametrize("script", SCRIPTS)
def test_both_ends_of_every_range_belong_to_it(script):
    for bounds in SCRIPTS[script]:
        for point in bounds:
            if unicodedata.category(chr(point))[0] == "L":
                assert set(count_scripts(chr(point))) == {script}


@given(st.text())
def test_every_letter_is_counted_once(text):
    assert sum(count_scripts(text).values()) == sum(unicodedata.category(c)[0] == "L" for c in text)

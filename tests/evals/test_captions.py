import numpy as np

from nextflow_jax.evals.captions import exact_match, twins


def test_exact_match_ignores_surrounding_space_and_nothing_else():
    answers = [" red heart", "red  heart", "Red heart", "heart", ""]
    accepted = [["red heart"]] * 3 + [["red heart", "heart"], ["red heart"]]
    assert exact_match(answers, accepted).tolist() == [True, False, False, True, False]


def test_twins_are_pictures_with_the_same_pixels():
    images = np.zeros((4, 2, 2, 3), np.uint8)
    images[1, 0, 0, 0] = 1
    images[3] = images[1]
    names = ["artist", "red dot", "man artist", "dot"]
    assert twins(images, names) == {
        "artist": ("artist", "man artist"),
        "man artist": ("artist", "man artist"),
        "red dot": ("red dot", "dot"),
        "dot": ("red dot", "dot"),
    }

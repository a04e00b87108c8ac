from nextflow_jax.evals.captions import exact_match


def test_exact_match_ignores_surrounding_space_and_nothing_else():
    answers = [" red heart", "red  heart", "Red heart", "heart", ""]
    accepted = [["red heart"]] * 3 + [["red heart", "heart"], ["red heart"]]
    assert exact_match(answers, accepted).tolist() == [True, False, False, True, False]

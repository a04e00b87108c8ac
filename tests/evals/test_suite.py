import dataclasses
import json

import numpy as np
import pytest

from nextflow_jax.evals.answers import Answers
from nextflow_jax.evals.config import EvaluationConfig
from nextflow_jax.evals.outcome import read_outcome
from nextflow_jax.evals.parts import PARTS, Subject
from nextflow_jax.evals.pool import make_pool
from nextflow_jax.evals.suite import run_suite
from tests.evals.tiny import ExactCodec, Pupil, make_pictures

CONFIG = EvaluationConfig(batch_size=4, shown=2, targets=(("psnr_train", 21.0),))


def make_subject(pictures, forgotten="nothing", config=CONFIG):
    answers = Answers(Pupil(pictures, forgotten), pictures, config)
    return Subject(pictures, make_pool(pictures, ExactCodec()), answers, 20, config)


def run(out, subject, bundle="b1"):
    """(metrics, which parts ran)."""
    lines = []
    metrics = run_suite(lambda: subject, {"bundle": bundle}, subject.pictures, subject.config, out, lines.append)
    return metrics, [line.split(":")[0] for line in lines if not line.endswith("complete")]


def test_a_model_that_knows_everything_scores_full_marks(tmp_path):
    metrics, _ = run(tmp_path, make_subject(make_pictures()))
    names = ("t2i_retrieval_at_1", "t2i_retrieval_at_1_originals", "caption_exact_match", "edit_retrieval_at_1")
    assert {name: metrics[name] for name in names} == dict.fromkeys(names, 1.0)
    heldout = metrics["heldout"]
    names = ("retrieval_at_1", "right_base", "right_attribute", "caption_exact_match", "edit_retrieval_at_1")
    assert {name: heldout[name] for name in names} == dict.fromkeys(names, 1.0)
    assert heldout["count"] == 2
    assert metrics["psnr_train"] == pytest.approx(20 * np.log10(255), abs=0.1)
    assert metrics["codebook_usage"] == 10 / 20  # 11 training pictures, two of them alike
    assert metrics["targets"] == {"psnr_train": 21.0}
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics


def test_what_was_forgotten_counts_as_wrong_and_twins_as_right(tmp_path):
    """Train: hand, hand light, foot, foot dark, ear and nose in all tones, paw (a twin of foot): 11 pictures."""
    metrics, _ = run(tmp_path, make_subject(make_pictures(), forgotten="hand"))
    assert metrics["t2i_retrieval_at_1"] == pytest.approx(9 / 11)
    assert metrics["caption_exact_match"] == pytest.approx(9 / 11)
    assert metrics["caption_exact_match_strict"] == pytest.approx(8 / 11)  # paw is answered with its twin's name
    assert metrics["heldout"]["right_base"] == metrics["heldout"]["retrieval_at_1"] == 0.5
    assert metrics["heldout"]["chance_attribute"] == pytest.approx(1 / 3)
    assert metrics["heldout"]["chance_base"] == pytest.approx(3 / 14)
    assert metrics["chance"]["t2i_retrieval_at_1"] == pytest.approx((9 * 1 + 2 * 2) / 11 / 14)


def test_edits_are_those_of_training_and_copying_does_not_count(tmp_path):
    metrics, _ = run(tmp_path, make_subject(make_pictures(), forgotten="dark"))
    records = read_outcome(tmp_path / "evaluation", "edits").records
    assert len(records) == 2 + 2 + 6 + 6  # ordered pairs of train tones: hand, foot, ear, nose
    assert {record["right"] for record in records if record["key"].endswith("dark")} == {False}
    assert metrics["edit_retrieval_at_1"] == pytest.approx(np.mean([not r["key"].endswith("dark") for r in records]))
    assert metrics["chance"]["edit_retrieval_at_1_by_copying"] == 0


def test_bases_never_trained_on_are_edited_apart(tmp_path):
    """The eye, never trained on, in a second tone: two edits of it."""
    pictures = make_pictures(unseen=("eye", "eye dark"))
    metrics, _ = run(tmp_path / "all", make_subject(pictures))
    assert metrics["unseen"] == {"count": 2, "edit_retrieval_at_1": 1.0, "edit_right_attribute": 1.0}
    metrics, _ = run(tmp_path, make_subject(pictures, forgotten="dark"))
    assert metrics["unseen"]["edit_retrieval_at_1"] == 0.5
    assert metrics["chance"]["unseen"]["edit_right_attribute"] == 0.5
    assert "eye dark" not in {record["key"] for record in read_outcome(tmp_path / "evaluation", "edits").records}


def test_parts_of_which_nothing_is_asked_are_empty(tmp_path):
    config = dataclasses.replace(CONFIG, edits=0, heldout=0)
    metrics, _ = run(tmp_path, make_subject(make_pictures(), config=config))
    assert metrics["edit_retrieval_at_1"] is None and metrics["heldout"]["count"] == metrics["unseen"]["count"] == 0
    assert metrics["t2i_retrieval_at_1"] == 1.0


def test_finished_parts_are_kept_and_another_bundle_runs_all_again(tmp_path):
    subject = make_subject(make_pictures())
    first, ran = run(tmp_path, subject)
    assert ran == list(PARTS)
    asked = len(subject.answers.generator.batches)
    (tmp_path / "evaluation" / "edits.json").unlink()
    again, ran = run(tmp_path, subject)
    assert ran == ["edits"] and again == first
    assert len(subject.answers.generator.batches) > asked
    assert run(tmp_path, subject)[1] == []
    assert run(tmp_path, subject, bundle="b2")[1] == list(PARTS)


def test_answers_come_in_batches_with_a_seed_each():
    pictures = make_pictures()
    subject = make_subject(pictures)
    documents = subject.documents("text_to_image", "train", 100, "prompts")
    images = subject.answers.images("drawn", documents)
    assert subject.answers.generator.batches == [4, 4, 3]
    assert np.array_equal(images, pictures.images([document.image_keys()[-1] for document in documents]))
    requests = [subject.answers._request(document, 7 + i) for i, document in enumerate(documents)]
    assert [request.seed for request in requests] == list(range(7, 18))


def test_a_draw_is_repeatable_ordered_and_of_the_size_asked_for():
    subject = make_subject(make_pictures())
    items = list(range(100))
    drawn = subject.choose(items, 10, "a")
    assert len(set(drawn)) == 10 and drawn == sorted(drawn) == subject.choose(items, 10, "a")
    assert drawn != subject.choose(items, 10, "b")
    assert subject.choose(items, 200, "a") == items

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.models.objective import ObjectiveConfig, decoder_loss, hidden_loss
from tests.models import random_rows

CONFIG = random_rows.tiny_config()
BATCH = random_rows.packed_batch()
LABELS = (BATCH["targets"], BATCH["loss_weights"], BATCH["scale_index"])


@functools.cache
def logits():
    return jnp.asarray(
        np.random.default_rng(0).normal(size=(*BATCH["tokens"].shape, CONFIG.vocabulary.size)), jnp.float32
    )


def loss_of(logits, labels=LABELS, **objective):
    return decoder_loss(logits, *labels, CONFIG, ObjectiveConfig(**objective))


def per_token():
    x = np.asarray(logits(), np.float64)
    targets = np.asarray(BATCH["targets"])
    normaliser = np.log(np.exp(x).sum(-1))
    return normaliser - np.take_along_axis(x, targets[..., None], -1)[..., 0], normaliser, x.argmax(-1) == targets


def test_loss_is_the_weighted_mean_over_the_whole_batch():
    cross_entropy, normaliser, _ = per_token()
    weights = np.asarray(BATCH["loss_weights"], np.float64)
    expected = (weights * cross_entropy).sum() / weights.sum()
    np.testing.assert_allclose(loss_of(logits())[0], expected, rtol=1e-5)
    with_z = (weights * (cross_entropy + 0.1 * normaliser**2)).sum() / weights.sum()
    loss, metrics = loss_of(logits(), z_loss=0.1)
    np.testing.assert_allclose(loss, with_z, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"][0] / metrics["loss"][1], with_z, rtol=1e-5)


def test_metrics_count_each_target_once_by_modality_and_scale():
    cross_entropy, _, correct = per_token()
    metrics = loss_of(logits())[1]
    targets, weights, scale = (np.asarray(x) for x in LABELS)
    members = {"text": [], "vision": [], **{f"scale_{k:02d}": [] for k in range(1, 5)}}
    for at in zip(*np.nonzero(weights)):
        if targets[at] < random_rows.VOCABULARY.vision_offset:
            members["text"].append(at)
        else:
            members["vision"].append(at)
            members[f"scale_{max(1, scale[at]):02d}"].append(at)
    assert set(metrics) == {"loss", *(f"{kind}/{part}" for kind in ("cross_entropy", "accuracy") for part in members)}
    for part, positions in members.items():
        for kind, value in (("cross_entropy", cross_entropy), ("accuracy", correct)):
            total, weight = metrics[f"{kind}/{part}"]
            assert weight == len(positions)
            np.testing.assert_allclose(total, sum(value[at] for at in positions), rtol=1e-5)
    assert metrics["accuracy/scale_01"][1] == 6 and metrics["accuracy/scale_04"][1] == 0


@pytest.mark.parametrize("implementation", ["reference", "fused"])
def test_hidden_states_and_head_give_the_same_as_logits(implementation):
    rng = np.random.default_rng(1)
    hidden = jnp.asarray(rng.normal(size=(*BATCH["tokens"].shape, 8)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(8, CONFIG.vocabulary.size)), jnp.float32)
    objective = ObjectiveConfig(cross_entropy=implementation)
    got = hidden_loss(hidden, head, *LABELS, CONFIG, objective)
    expected = loss_of(hidden @ head)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_nothing_to_learn_gives_zero_and_no_gradient():
    labels = (LABELS[0], jnp.zeros_like(LABELS[1]), LABELS[2])
    loss, gradient = jax.value_and_grad(lambda x: loss_of(x, labels)[0])(logits())
    assert loss == 0
    assert not np.asarray(gradient).any()


def test_metrics_add_up_over_parts_of_a_batch():
    whole = loss_of(logits())[1]
    halves = [loss_of(logits()[i : i + 1], tuple(x[i : i + 1] for x in LABELS))[1] for i in range(2)]
    for name, (total, weight) in whole.items():
        np.testing.assert_allclose(total, sum(half[name][0] for half in halves), rtol=1e-5)
        np.testing.assert_allclose(weight, sum(half[name][1] for half in halves), rtol=1e-6)


def test_label_smoothing_changes_what_is_minimised_and_no_metric():
    plain, smooth = loss_of(logits()), loss_of(logits(), label_smoothing=0.1)
    cross_entropy, normaliser, _ = per_token()
    weights = np.asarray(BATCH["loss_weights"], np.float64)
    mean = normaliser - np.asarray(logits(), np.float64).mean(-1)
    expected = (weights * (0.9 * cross_entropy + 0.1 * mean)).sum() / weights.sum()
    np.testing.assert_allclose(smooth[0], expected, rtol=1e-5)
    for name in set(plain[1]) - {"loss"}:
        assert plain[1][name] == smooth[1][name]


BROKEN = ObjectiveConfig(z_loss=-1.0, cross_entropy="fuse", label_smoothing=1.0)


def test_broken_rules_are_named():
    faults = {fault.field: str(fault) for fault in BROKEN.faults()}
    assert "did you mean fused" in faults["cross_entropy"]
    assert "must not be negative" in faults["z_loss"]
    assert "below 1" in faults["label_smoothing"]

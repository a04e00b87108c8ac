"""Shared and separate heads: their weights, their softmaxes, and that the switch changes nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.models.decoder import Decoder, DecoderInputs
from nextflow_jax.models.objective import ObjectiveConfig, decoder_loss, hidden_loss
from nextflow_jax.ops.cross_entropy import IMPLEMENTATIONS
from nextflow_jax.sharding import MeshConfig, batch_sharding, logical_context, make_mesh, make_rules, shardings_of
from tests.models import random_rows

BATCH = random_rows.packed_batch()
LABELS = (BATCH["targets"], BATCH["loss_weights"], BATCH["scale_index"])
VOCABULARY = random_rows.VOCABULARY
KINDS = [{"head": kind, "tied_head": tied} for kind in ("shared", "separate") for tied in (False, True)]


@functools.cache
def made(head, tied_head=False):
    return random_rows.make_decoder(random_rows.tiny_config(head=head, tied_head=tied_head))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_text_and_vision_heads_are_the_columns_of_all_weights(kind):
    decoder, variables = made(**kind)
    text, vision, whole = (
        decoder.apply(variables, method=name) for name in ("text_head", "vision_head", "head_weights")
    )
    assert whole.shape == (32, VOCABULARY.size)
    assert text.shape == (32, VOCABULARY.vision_offset) and vision.shape == (32, VOCABULARY.codebook_size)
    np.testing.assert_array_equal(whole[:, : VOCABULARY.used], np.concatenate([text, vision], axis=1))
    if kind["tied_head"]:
        table = np.asarray(variables["params"]["embedding"]["tokens"])
        np.testing.assert_array_equal(text, table[: VOCABULARY.vision_offset].T)
        ties_codes = np.array_equal(vision, table[VOCABULARY.vision_offset : VOCABULARY.used].T)
        assert ties_codes == (kind["head"] == "shared")


def test_separate_heads_shard_each():
    shapes = {name: leaf.shape for name, leaf in made("separate")[1]["params"]["head"].items()}
    assert shapes == {"text_kernel": (32, 48), "vision_kernel": (32, 16)}
    assert set(made("shared")[1]["params"]["head"]) == {"kernel"}
    assert set(made("separate", tied_head=True)[1]["params"]["head"]) == {"vision_kernel"}


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_the_fused_loss_is_that_of_the_logits(kind):
    decoder, variables = made(kind)

    @jax.jit
    def losses(variables):
        inputs = DecoderInputs.of(BATCH)
        logits = decoder.apply(variables, inputs)[0]
        hidden, _ = decoder.apply(variables, inputs, method="hidden")
        heads = decoder.apply(variables, method="loss_heads")
        fused = [
            hidden_loss(hidden, heads, *LABELS, decoder.config, ObjectiveConfig(z_loss=0.01, cross_entropy=name))
            for name in IMPLEMENTATIONS
        ]
        return fused, decoder_loss(logits, *LABELS, decoder.config, ObjectiveConfig(z_loss=0.01))

    fused, expected = losses(variables)
    for got in fused:
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_a_separate_softmax_is_over_the_ids_of_one_modality(kind):
    """Against NumPy: log of the sum over the ids that compete with the target."""
    config = random_rows.tiny_config(head=kind)
    logits = np.random.default_rng(0).normal(size=(*BATCH["tokens"].shape, VOCABULARY.size))
    targets, weights = np.asarray(LABELS[0]), np.asarray(LABELS[1])
    rivals = np.ones((*targets.shape, VOCABULARY.size), bool)
    if kind == "separate":
        ids = np.arange(VOCABULARY.size)
        of_text = ids < VOCABULARY.vision_offset
        of_codes = ~of_text & (ids < VOCABULARY.used)
        rivals = np.where((targets >= VOCABULARY.vision_offset)[..., None], of_codes, of_text)
    normaliser = np.log((np.exp(logits) * rivals).sum(-1))
    cross_entropy = normaliser - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    expected = (weights * cross_entropy).sum() / weights.sum()
    got = decoder_loss(jnp.asarray(logits, jnp.float32), *LABELS, config, ObjectiveConfig())[0]
    assert float(got) == pytest.approx(expected, rel=1e-5)


def loss_of_heads(decoder, labels, variables, hidden):
    heads = decoder.apply(variables, method="loss_heads")
    return hidden_loss(hidden, heads, *labels, decoder.config, ObjectiveConfig())[0]


@functools.cache
def hidden_states():
    return jnp.asarray(np.random.default_rng(1).normal(size=(*BATCH["tokens"].shape, 32)), jnp.float32)


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_separate_heads_learn_apart(kind):
    """The weights of codes have a part in the loss of text only where they are in its softmax."""
    decoder, variables = made(kind)
    labels = (LABELS[0], jnp.where(LABELS[0] < VOCABULARY.vision_offset, LABELS[1], 0.0), LABELS[2])
    gradient = jax.jit(jax.grad(functools.partial(loss_of_heads, decoder, labels)))(variables, hidden_states())
    head = gradient["params"]["head"]
    codes = head["vision_kernel"] if kind == "separate" else head["kernel"][:, VOCABULARY.vision_offset :]
    assert bool(np.asarray(codes).any()) == (kind == "shared")


def test_separate_heads_over_four_devices_equal_those_of_one():
    decoder, variables = made("separate")
    step = jax.value_and_grad(functools.partial(loss_of_heads, decoder, LABELS))
    expected = jax.jit(step)(variables, hidden_states())
    mesh, rules = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4]), make_rules()
    boxed = jax.eval_shape(lambda: Decoder(decoder.config).init(jax.random.key(0), DecoderInputs.zeros(1, 1)))
    spread = jax.device_put(variables, shardings_of(boxed, mesh, rules))
    assert not spread["params"]["head"]["vision_kernel"].sharding.is_fully_replicated
    with logical_context(mesh, rules):
        got = jax.jit(step)(spread, jax.device_put(hidden_states(), batch_sharding(mesh, rules)))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)

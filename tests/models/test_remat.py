"""Every policy gives the same gradients, keeps what it says and, beside the others, no more."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nextflow_jax.models.decoder import DecoderInputs
from nextflow_jax.models.objective import ObjectiveConfig, hidden_loss
from nextflow_jax.models.remat import REMAT_POLICIES
from nextflow_jax.ops.attention import IMPLEMENTATIONS, attend
from tests.models import random_rows

BATCH = random_rows.packed_batch()
INPUTS = DecoderInputs.of(BATCH)


def loss_of(remat, attention):
    """The loss as a function of variables and batch, and variables."""
    decoder, variables = random_rows.make_decoder(random_rows.tiny_config(remat=remat, attention=attention))

    def loss(variables, batch):
        hidden, _ = decoder.apply(variables, DecoderInputs.of(batch), method="hidden")
        labels = (batch["targets"], batch["loss_weights"], batch["scale_index"])
        head = decoder.apply(variables, method="head_weights")
        return hidden_loss(hidden, head, *labels, decoder.config, ObjectiveConfig())[0]

    return loss, variables


@functools.cache
def gradients(remat, attention="chunked"):
    loss, variables = loss_of(remat, attention)
    return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(variables, BATCH))


@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_gradients_are_the_same(remat):
    for got, expected in zip(gradients(remat), gradients("none"), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def kept(remat):
    """How many numbers the backward pass keeps of the forward one."""
    decoder, variables = random_rows.make_decoder(random_rows.tiny_config(remat=remat))
    forward = lambda v: decoder.apply(v, INPUTS, method="hidden")[0]  # noqa: E731
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda v: jax.vjp(forward, v)[1], variables)))


def test_each_keeps_more_than_the_one_before():
    counts = [kept(name) for name in ("full", "attention", "dots", "dots_attention", "none")]
    assert counts == sorted(set(counts))
    assert kept("offload") == kept("full")


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_attention_can_be_kept_whatever_computes_it(attention):
    q, k = jnp.ones((1, 128, 2, 16)), jnp.ones((1, 128, 1, 16))
    end = jnp.arange(1, 129, dtype=jnp.int32)[None]

    def compute(q, k):
        # What follows needs the mixed values for its own backward pass, as the output projection does.
        return jnp.square(attend(q, k, k, jnp.zeros_like(end), end, implementation=attention))

    def kept(policy):
        function = jax.checkpoint(compute, policy=REMAT_POLICIES[policy])
        return [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda *x: jax.vjp(function, *x)[1], q, k))]

    # The mixed values, and where the backward pass needs it one more number a query and head.
    assert sum(kept("attention")) - sum(kept("full")) in (q.size, q.size + q.size // q.shape[3])


def test_layer_inputs_go_to_the_host_where_there_is_one():
    """On CPUs, which are their own host, nothing moves."""
    loss, variables = loss_of("offload", "chunked")
    traced = jax.jit(jax.grad(loss)).trace(variables, BATCH)
    assert "pinned_host" in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "pinned_host" not in traced.lower().as_text()

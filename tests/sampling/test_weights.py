"""Weights are converted once, and nothing the decoder computes changes by it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from nextflow_jax.models.decoder import Decoder, DecoderInputs
from nextflow_jax.sampling.weights import place_weights
from tests import tiny_models


def test_converted_weights_give_the_same_hidden_states_and_heads_bit_for_bit():
    part = tiny_models.decoder_part()
    config = dataclasses.replace(part.config, dtype="bfloat16")
    inputs = DecoderInputs.zeros(2, 7, part.sequence.taps)
    inputs = inputs._replace(
        tokens=jnp.arange(14).reshape(2, 7),
        scale_index=jnp.asarray([[0, 0, 2, 2, 3, 3, 0]] * 2),
        num_scales=jnp.asarray([[0, 3, 3, 3, 3, 3, 0]] * 2),
        vision_ids=jnp.arange(14 * part.sequence.taps).reshape(2, 7, -1) % 24,
        vision_weights=jnp.full((2, 7, part.sequence.taps), 0.3),
        attend_end=jnp.broadcast_to(jnp.arange(1, 8), (2, 7)),
    )

    @jax.jit
    def outputs(variables):
        decoder = Decoder(config)
        hidden, _ = decoder.apply(variables, inputs, method=Decoder.hidden)
        heads = (decoder.apply(variables, method=head) for head in (Decoder.text_head, Decoder.vision_head))
        return hidden, *(head.astype(hidden.dtype) for head in heads)

    placed = place_weights(config, part.variables, None).decoder
    for ours, theirs in zip(outputs(placed), outputs(part.variables)):
        assert np.array_equal(ours, theirs)
    sizes = [sum(array.nbytes for array in jax.tree.leaves(tree)) for tree in (placed, part.variables)]
    assert sizes[0] < 0.52 * sizes[1]


def test_weights_in_the_compute_dtype_stay_as_they_are():
    part = tiny_models.decoder_part()
    placed = place_weights(part.config, part.variables, None).decoder
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a.dtype == b.dtype, placed, part.variables)))

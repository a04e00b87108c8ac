"""The cost of rows, against the FLOPs of the traced model."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from nextflow_jax.data.costs import DEFAULT_COST
from nextflow_jax.models.decoder import Decoder, DecoderInputs
from nextflow_jax.models.presets import decoder_preset
from nextflow_jax.training.flops import TRAINING_FACTOR, forward_flops
from nextflow_jax.training.row_cost import row_cost
from nextflow_jax.vocabulary import Vocabulary
from tests import tiny_models


@pytest.mark.parametrize(
    "change", [{}, {"head": "separate"}, {"kv_heads": 4, "layers": 3}, {"connector": "mlp"}], ids=str
)
def test_it_is_what_the_traced_model_computes(change):
    """The reference attention computes all pairs."""
    config = dataclasses.replace(tiny_models.decoder_part().config, attention="reference", **change)
    model, cost = Decoder(config), row_cost(config)
    for length in (32, 96):
        arrays = tiny_models_inputs(config, length)
        variables = jax.eval_shape(model.init, jax.random.key(0), arrays)

        def forward(variables, arrays):
            hidden, _ = model.apply(variables, arrays, method="hidden")
            heads = jax.tree.leaves(model.apply(variables, method="loss_heads"))
            return [hidden @ head for head in heads if head.shape[0] == config.width]

        traced = TRAINING_FACTOR * forward_flops(forward, variables, arrays)
        assert cost.flops(length, length**2) == pytest.approx(traced, rel=0.02)


def test_without_a_model_the_ratio_is_that_of_the_7b_shape():
    model = decoder_preset("qwen2_5_vl_7b", Vocabulary(152_064, 16_384), 40, 17)
    cost = row_cost(model)
    assert cost.per_pair / cost.per_token == pytest.approx(DEFAULT_COST.per_pair / DEFAULT_COST.per_token, rel=0.1)


def tiny_models_inputs(config, length):
    """Inputs of one row of any contents."""
    from nextflow_jax import sequence
    from nextflow_jax.data.pipeline import _no_positions

    nothing = _no_positions(sequence.SequenceConfig(), tiny_models.FAMILY, config.vocabulary, None)
    arrays = sequence.pack_row([nothing], length, config.vocabulary).arrays()
    return DecoderInputs.of({name: jnp.asarray(array)[None] for name, array in arrays.items()})

"""The cost of the rows that a decoder trains on, from its configuration: what packing by compute budget balances."""

from nextflow_jax.data.costs import RowCost
from nextflow_jax.models.decoder_config import DecoderConfig
from nextflow_jax.training.flops import TRAINING_FACTOR


def row_cost(model: DecoderConfig) -> RowCost:
    """FLOPs (two a multiply-add) of a training step's row, forward and backward, without what remat computes again.

    Linear are the projections of attention, the MLP, the connector and the heads; attention counts visible pairs, as
    kernels that skip what no range touches compute them.
    """
    queries = model.heads * model.head_size
    keys_and_values = 2 * model.kv_heads * model.head_size
    attention = model.width * (2 * queries + keys_and_values)
    mlp = 3 * model.width * model.mlp_width
    head = model.width * model.vocabulary.size
    code_dim = len(range(model.code_dim)[model.input_dims])
    connector = code_dim * model.width + (model.width**2 if model.connector == "mlp" else 0)
    linear = model.layers * (attention + mlp) + head + connector
    return RowCost(2.0 * TRAINING_FACTOR * linear, 2.0 * TRAINING_FACTOR * 2 * model.layers * queries)

import jax
import numpy as np
import pytest
from flax.core import meta

from nextflow_jax.models.activations import COLLECTION, LARGEST, MEAN_SQUARE
from nextflow_jax.models.decoder import Decoder, DecoderInputs
from tests.models.random_rows import make_decoder, packed_batch, tiny_config


@pytest.mark.parametrize("remat", ["none", "full"])
def test_magnitudes_are_those_of_the_layers_outputs(remat):
    config = tiny_config(remat=remat)
    decoder, variables = make_decoder(config)
    inputs = DecoderInputs.of(packed_batch())
    (hidden, _), written = decoder.apply(variables, inputs, method="hidden", mutable=[COLLECTION])
    magnitudes = written[COLLECTION]["layers"]
    assert magnitudes[LARGEST].shape == magnitudes[MEAN_SQUARE].shape == (config.layers, *inputs.tokens.shape)
    # The final norm divides what the last layer gave by its RMS.
    normalised = hidden / meta.unbox(variables)["params"]["final_norm"]["scale"]
    stands_out = magnitudes[LARGEST][-1] / np.sqrt(magnitudes[MEAN_SQUARE][-1] + config.norm_eps)
    np.testing.assert_allclose(stands_out, np.abs(normalised).max(axis=-1), rtol=1e-4)
    assert (np.asarray(magnitudes[LARGEST][0]) != np.asarray(magnitudes[LARGEST][-1])).all()


def test_nothing_is_computed_for_those_who_do_not_ask():
    config = tiny_config()
    inputs = DecoderInputs.zeros(1, 8)
    assert set(jax.eval_shape(Decoder(config).init, jax.random.key(0), inputs)) == {"params"}
    decoder, variables = make_decoder(config)

    def maxima(mutable):
        apply = lambda v: decoder.apply(v, inputs, method="hidden", mutable=mutable)  # noqa: E731
        return str(jax.make_jaxpr(apply)(variables)).count("reduce_max")

    assert maxima([]) == maxima(False) == maxima([COLLECTION]) - 1

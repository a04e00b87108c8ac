"""Programs for absent devices: what does not divide is refused by name before anything is compiled."""

import pytest

from nextflow_jax.aot.programs import leaner_policies, remat_policies, training_step
from nextflow_jax.aot.topology import open_topology
from nextflow_jax.config import load_experiment
from nextflow_jax.errors import UserError
from nextflow_jax.models.remat import REMAT_POLICIES
from nextflow_jax.training.experiment import build_experiment

DECODER = "experiments/nextflow/decoder.py:pretrain_256,smoke"
"""2 heads of each kind, a vocabulary of 384, 4 rows of 256."""


def experiment(*overrides):
    return build_experiment(load_experiment(DECODER, ["mesh.data=1", *overrides]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mesh.tensor=4"], r"params/layers/attention/(key|query)/kernel .*'(kv_)?heads' = 2 is not divisible by 4"),
        (["mesh.tensor=4", "model.heads=4"], "key/kernel .*'kv_heads' = 2 .* nearest sizes: 4"),
        (
            ["mesh.tensor=4", "model.heads=4", "model.kv_heads=4", "model.vocabulary.pad_multiple=1"],
            "'vocab' = 369 .*368 or 372",
        ),
        (["mesh.fsdp=4", "train.batch_size=6"], "config.train.batch_size = 6: must be a multiple .* use 4 or 8"),
        (["mesh.context=4", "pipeline.row_length=250"], "config.pipeline.row_length = 250: .* use 252"),
        (["mesh.fsdp=4", "model.width=66", "model.head_size=32"], "'embed' = 66 is not divisible by 4 .*64 or 68"),
    ],
)
def test_what_does_not_divide_is_named_with_the_nearest_sizes(overrides, message):
    with pytest.raises(UserError, match=message):
        training_step(experiment(*overrides), open_topology("cpu:4"))


def test_policies_by_memory():
    assert set(remat_policies("decoder")) == {"none", *REMAT_POLICIES}
    assert leaner_policies(experiment("model.remat=attention")) == {"model.remat": ("offload", "full")}
    assert leaner_policies(experiment("model.remat=offload")) == {"model.remat": ()}

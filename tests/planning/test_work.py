import dataclasses

import pytest

from nextflow_jax.models.presets import decoder_preset
from nextflow_jax.planning.work import REMAT, Batch, Placement, TransformerShape, chip_work, model_flops
from nextflow_jax.training.row_cost import row_cost
from nextflow_jax.vocabulary import Vocabulary

MODEL = decoder_preset("qwen2_5_vl_7b", Vocabulary(152_064, 16_384), 40, 19)
SHAPE = TransformerShape(
    MODEL.layers, MODEL.width, MODEL.heads, MODEL.kv_heads, MODEL.head_size, MODEL.mlp_width, MODEL.vocabulary.size
)
BATCH = Batch(512, 16_384, 16_384 * 900.0)
POD = Placement("v5p", (4, 4, 8), fsdp=128)


def test_model_flops_are_those_that_packing_counts():
    """Its count has the connector too, about a fiftieth of a layer's."""
    cost = row_cost(MODEL)
    rows = BATCH.rows * cost.flops(BATCH.length, int(BATCH.pairs))
    assert rows * 0.997 < model_flops(SHAPE, BATCH) < rows


def test_the_parameters_are_those_of_the_published_size():
    assert SHAPE.parameters == pytest.approx(7.73e9, rel=0.01)


@pytest.mark.parametrize("place", [POD, Placement("v5p", (4, 4, 8), slices=4, data=2, fsdp=16, context=4)])
def test_chips_divide_the_flops_and_nothing_is_lost(place):
    work, alone = chip_work(SHAPE, BATCH, place), chip_work(SHAPE, BATCH, Placement("v5p", (1, 1, 1)))
    assert work.matmul_flops * place.chips == pytest.approx(alone.matmul_flops)
    assert work.attention_flops * place.chips == pytest.approx(alone.attention_flops)


def test_remat_computes_again_what_it_does_not_keep():
    work = {name: chip_work(SHAPE, BATCH, POD, again) for name, again in REMAT.items()}
    once = 3 * 2 * SHAPE.matmul_parameters * BATCH.positions / POD.chips
    assert work["none"].matmul_flops == pytest.approx(once) == work["dots"].matmul_flops
    layers = 2 * BATCH.positions / POD.chips * SHAPE.layers
    again = SHAPE.attention_parameters + SHAPE.mlp_parameters * 2 / 3
    assert work["full"].matmul_flops - once == pytest.approx(layers * again)
    assert work["attention"].matmul_flops == work["full"].matmul_flops
    assert work["attention"].attention_flops == work["none"].attention_flops < work["dots"].attention_flops


def test_fsdp_sends_two_gathers_and_the_gradients():
    parameters = SHAPE.parameters
    work = chip_work(SHAPE, BATCH, POD)
    assert work.ici_bytes == pytest.approx((2 * 2 + 4) * parameters * 127 / 128)
    assert work.update_bytes == pytest.approx(7 * 4 * parameters / 128)
    assert work.dcn_bytes == 0.0


def test_a_chip_alone_sends_nothing():
    work = chip_work(SHAPE, BATCH, Placement("v5p", (1, 1, 1)))
    assert work.ici_bytes == work.dcn_bytes == 0.0


def test_slices_reduce_each_chips_share_of_the_gradients():
    two = chip_work(SHAPE, BATCH, dataclasses.replace(POD, slices=2)).dcn_bytes
    assert two == pytest.approx(4 * SHAPE.parameters / 128)
    many = chip_work(SHAPE, BATCH, dataclasses.replace(POD, slices=64)).dcn_bytes
    assert many == pytest.approx(two * 2 * 63 / 64)


def test_every_axis_sends_what_it_must():
    """Against fsdp 32 alone: gradients of replicas, sums of activations, keys and queries of shared rows."""
    positions, layers, width = BATCH.positions / 128, SHAPE.layers, SHAPE.width

    def sent(**axis):
        return chip_work(SHAPE, BATCH, dataclasses.replace(POD, fsdp=32, **axis)).ici_bytes

    alone = chip_work(SHAPE, BATCH, Placement("v5p", (4, 4, 2), fsdp=32)).ici_bytes
    assert sent(data=4) - alone == pytest.approx(2 * 3 / 4 * 4 * SHAPE.parameters / 32)
    assert sent(tensor=4) - alone / 4 == pytest.approx(5 * layers * 2 * 3 / 4 * positions * 4 * width * 2)
    keys, queries = 2 * 4 * 128 * 2 * positions * 4 * 3 / 4, 2 * 28 * 128 * 2 * positions
    gathers = (2 * 2 + 4) * SHAPE.parameters * 127 / 128
    assert sent(context=4) == pytest.approx(gathers + layers * 4 * (keys + queries))


def test_frozen_parameters_have_no_gradients():
    frozen, trained = (chip_work(SHAPE, BATCH, POD, frozen=frozen) for frozen in (True, False))
    layers = SHAPE.layers * (SHAPE.attention_parameters + SHAPE.mlp_parameters)
    saved = (trained.matmul_flops - frozen.matmul_flops) * POD.chips
    assert saved == pytest.approx(2 * layers * BATCH.positions)
    assert frozen.ici_bytes == pytest.approx(trained.ici_bytes / 2) and frozen.update_bytes == 0.0
    assert model_flops(SHAPE, BATCH) - model_flops(SHAPE, BATCH, frozen=True) == pytest.approx(saved)


def test_a_mesh_that_is_not_the_slice_is_a_fault():
    (fault,) = dataclasses.replace(POD, fsdp=64).faults()
    assert fault.value == 64 and "128" in fault.fix

import pytest

from nextflow_jax.planning.published import LLAMA_3_1_8B, LLAMA_3_1_70B, published_runs, scaled_shape

RUNS = published_runs()


@pytest.mark.parametrize("billions", [16, 32, 64, 128])
def test_scaled_shapes_have_their_size(billions):
    assert scaled_shape(billions).parameters == pytest.approx(billions * 1e9, rel=0.05)


def test_llama_shapes_have_their_size():
    assert LLAMA_3_1_8B.parameters == pytest.approx(8.03e9, rel=0.001)
    assert LLAMA_3_1_70B.parameters == pytest.approx(70.55e9, rel=0.001)


@pytest.mark.parametrize(
    ("name", "generation", "mfu", "tolerance"),
    [
        ("Llama 3.1 8B", "v6e", 0.4546, 0.01),
        ("Llama 3.1 70B", "v6e", 0.5033, 0.01),
        ("Llama 2 70B", "v6e", 0.438, 0.01),
        ("Llama 2 70B", "v5p", 0.654, 0.03),
    ],
)
def test_tokens_a_second_agree_with_the_mfu_published_beside_them(name, generation, mfu, tolerance):
    """Attention counted without the mask, as MaxText did."""
    (run,) = (run for run in RUNS if (run.name, run.place.generation) == (name, generation))
    unmasked = 6 * run.shape.matmul_parameters + 3 * run.shape.flops_per_pair * run.batch.length
    found = unmasked * run.batch.positions / (run.place.chips * run.place.chip.peak_flops * run.seconds)
    assert found == pytest.approx(mfu, rel=tolerance)


def test_the_first_row_of_the_v5e_table_gives_its_other_column():
    """61.10% of 197 TFLOP/s is what the table rounds to 120 TFLOP/s a chip."""
    run = RUNS[0]
    unmasked = 6 * run.shape.matmul_parameters + 3 * run.shape.flops_per_pair * run.batch.length
    assert unmasked * run.batch.positions / run.place.chips / run.seconds == pytest.approx(120e12, rel=0.005)


def test_every_run_fills_its_slices_and_both_kinds_are_there():
    for run in RUNS:
        assert not list(run.place.faults()), run
        assert run.batch.rows % run.place.chips == 0
    for fitted in (True, False):
        assert {run.place.generation for run in RUNS if run.fitted == fitted} == {"v5e", "v5p", "v6e"}

"""The page about pods is what its command writes."""

import json
import math
import re

import pytest

from experiments.bench import pods
from experiments.nextflow.decoder import LEVELS, STAGES
from nextflow_jax.errors import UserError
from nextflow_jax.planning.goodput import Reliability
from nextflow_jax.planning.published import published_runs
from nextflow_jax.planning.step_time import fit_efficiency

NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[-+]\d+)?")


@pytest.fixture(scope="module")
def efficiency():
    return fit_efficiency([run for run in published_runs() if run.fitted])


def test_the_page_is_what_its_command_writes(tmp_path):
    pods.main(["--out", str(tmp_path / "page.md")])
    written, kept = (tmp_path / "page.md").read_text(), pods.PAGE.read_text()
    assert NUMBER.sub("#", written) == NUMBER.sub("#", kept), "run python -m experiments.bench.pods"
    for new, old in zip(NUMBER.findall(written), NUMBER.findall(kept), strict=True):
        assert float(new.replace(",", "")) == pytest.approx(float(old.replace(",", "")), rel=0.02, abs=0.15)


@pytest.mark.parametrize("pod", pods.PODS)
@pytest.mark.parametrize("name", ["pretrain_256", "pretrain_1024"])
def test_every_chip_is_busy_and_the_arrays_divide(pod, name):
    shape, stage = pods.decoder_shape(), STAGES[name]
    place, batch = pods.place_stage(pod, stage, shape.width)
    assert not list(place.faults())
    assert batch.rows % (place.chips // place.context) == 0 and batch.length % place.context == 0
    assert shape.width % (place.fsdp * place.context) == 0
    assert batch.rows == pytest.approx(LEVELS[stage.level].rows, rel=0.1)


def test_positions_of_later_stages_see_more():
    seen = [pods.pairs_per_position(STAGES[name]) for name in ("align_256", "pretrain_256", "pretrain_512", "sft_1024")]
    assert seen == sorted(seen) and seen[0] > 450


def test_failures_cost_time_and_are_the_only_difference(efficiency):
    often = Reliability(failures_per_chip_hour=1e-3)
    calm, rough = (pods.predict("v5p-1024", "pretrain_256", efficiency, one) for one in (Reliability(), often))
    assert rough.step == calm.step and rough.seconds > calm.seconds and rough.chip_hours > calm.chip_hours


def test_the_steps_of_a_stage_see_its_positions(efficiency):
    one = pods.predict("v5p-8960", "pretrain_512", efficiency, Reliability())
    seen = one.steps * one.batch.positions
    assert STAGES["pretrain_512"].tokens <= seen < STAGES["pretrain_512"].tokens + one.batch.positions
    assert one.chip_hours == pytest.approx(one.steps * one.step.total / one.saving.goodput / 3600 * 4480)


def test_money_is_shown_for_a_price_and_only_then(tmp_path):
    pods.main(["--out", str(tmp_path / "page.md"), "--price", "v5p=2.5"])
    rows = [
        line.split("|") for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("| v5p-512 ")
    ]
    hours, price = (float(cell.replace(",", "")) for cell in rows[0][4:6])
    assert math.isclose(price, 2.5 * hours, rel_tol=1e-4)
    assert "price" not in pods.PAGE.read_text().split("## align_256")[0].split("## All stages")[1]


def test_wrong_flags_are_refused():
    with pytest.raises(UserError, match="expects GENERATION=PRICE"):
        pods.main(["--price", "cheap"])
    with pytest.raises(UserError, match="restart_seconds"):
        pods.main(["--restart_seconds", "0"])


def test_bytes_of_a_compiled_step_are_put_beside_the_models(tmp_path, capsys):
    """FSDP over 64 chips: two gathers in bfloat16, gradients in float32; a step compiled with half of that."""
    ideal = 8 * pods.decoder_shape().parameters * 63 / 64
    compiled = {
        "topology": "v5p:4x4x4",
        "tokens_per_step": 64 * 16_384,
        "mesh": {"slice": 1, "data": 1, "fsdp": 64, "tensor": 1, "context": 1},
        "settings": {"train.batch_size": 64, "model.remat": "full"},
        "roofline": {"work": {"ici_bytes": ideal / 2, "dcn_bytes": 0.0}},
    }
    (tmp_path / "step.json").write_text(json.dumps(compiled))
    pods.main(["--compiled", str(tmp_path / "step.json")])
    line = json.loads(capsys.readouterr().out)
    assert line["ici"] == [round(ideal), round(ideal / 2), 0.5] and line["dcn"] == [0, 0, 0.0]

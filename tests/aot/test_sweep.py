"""What a sweep tries, and what it puts first."""

import pytest

from nextflow_jax.aot import sweep
from nextflow_jax.aot.topology import open_topology
from nextflow_jax.errors import DoesNotFit, UserError
from nextflow_jax.sharding import MeshConfig
from nextflow_jax.training.experiment import ContrastiveExperiment, DecoderExperiment
from nextflow_jax.training.settings import TrainConfig


def test_meshes_divide_devices_and_batch():
    experiment = DecoderExperiment(mesh=MeshConfig(data=1, fsdp=-1), train=TrainConfig(batch_size=64))
    found = sweep.meshes(experiment, 64)
    assert [(mesh["data"], mesh["fsdp"], mesh["context"]) for mesh in found] == [
        (1, 64, 1),
        (4, 16, 1),
        (16, 4, 1),
        (1, 32, 2),
    ]
    small = DecoderExperiment(mesh=MeshConfig(data=1, fsdp=-1), train=TrainConfig(batch_size=32))
    assert [mesh["context"] for mesh in sweep.meshes(small, 64)] == [2]


def test_every_policy_on_every_mesh():
    decoder = DecoderExperiment(mesh=MeshConfig(data=1, fsdp=4), train=TrainConfig(batch_size=4))
    tried = list(sweep.candidates(decoder, 4))
    assert [changes["model.remat"] for changes in tried[:6]] == [
        *("offload", "full", "attention", "dots", "dots_attention", "none")
    ]
    towers = ContrastiveExperiment(mesh=MeshConfig(data=4), train=TrainConfig(batch_size=4))
    assert [changes["model.text.remat"] for changes in sweep.candidates(towers, 4)] == ["full", "none"]


def result(name, seconds, headroom, fits=True):
    return {
        "changes": name,
        "fits": fits,
        "hbm": {"headroom": headroom, "limit": 100},
        "step_seconds_estimate": seconds,
        "mfu_bound": 0.5,
        "roofline": {"seconds_without_overlap": seconds},
    }


def test_ranking():
    results = [
        *(result("quick but tight", 1.0, 5), result("slow", 3.0, 50), result("quick", 2.0, 50)),
        *(result("too large", None, -10, fits=False), {"changes": "stopped", "fits": None, "error": "late"}),
    ]
    assert [place["changes"] for place in sweep.ranking(results)] == ["quick", "slow", "quick but tight"]


def swept(monkeypatch, one, batch_size=2):
    monkeypatch.setattr(sweep, "_compile", lambda arguments, changes, seconds: {"changes": changes, **one})
    experiment, shown = DecoderExperiment(mesh=MeshConfig(), train=TrainConfig(batch_size=batch_size)), []
    try:
        sweep.sweep(experiment, open_topology("cpu:2"), [], 1, shown.append)
    finally:
        assert shown[-1].keys() == {"ranking"}
    return shown[-1]["ranking"]


def test_the_ranking_is_shown_whatever_comes_of_it(monkeypatch):
    assert len(swept(monkeypatch, result("", 1.0, 50))) == 6
    large = {"fits": False, "hbm": {"peak": 2**31, "limit": 2**30}}
    with pytest.raises(DoesNotFit, match=r"none of 6 .* 2.00 GiB of a device's 1.00: .*--config.model.remat=offload"):
        swept(monkeypatch, large)
    with pytest.raises(UserError, match="none of 6 candidates could be compiled; the first: error: why") as ended:
        swept(monkeypatch, {"fits": None, "error": "error: why"})
    assert not isinstance(ended.value, DoesNotFit)
    with pytest.raises(UserError, match="no mesh whose blocks"):
        swept(monkeypatch, {}, batch_size=3)

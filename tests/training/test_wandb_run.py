"""Against a stand-in: the package is optional. wandb itself has been tried by hand, offline."""

import importlib.util
import json
import sys
import types

import pytest

from nextflow_jax.errors import UserError
from nextflow_jax.training.metrics import MetricsFiles, read_metrics
from nextflow_jax.training.settings import TrainConfig


class Stand:
    """What of the package is used."""

    Error = type("Error", (Exception,), {})

    def __init__(self, message=""):
        self.message = message
        self.begun, self.logged, self.finished = [], [], 0

    def init(self, **settings):
        if self.message:
            raise self.Error(self.message)
        self.begun.append(settings)
        finish = lambda: setattr(self, "finished", self.finished + 1)  # noqa: E731
        return types.SimpleNamespace(define_metric=lambda *_, **__: None, log=self.logged.append, finish=finish)


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"name": "toy", "seed": 3}))
    return tmp_path


def test_records_go_there_and_the_next_attempt_goes_on(workdir, monkeypatch):
    wandb = Stand()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in (0, 10):
        files = MetricsFiles(workdir, step, tensorboard=False, wandb="emoji")
        files.write({"step": step + 10, "loss": float("nan") if step else 2.0})
        files.close()
    first, second = wandb.begun
    assert first == second and first["id"] and first["resume"] == "allow"
    assert (first["project"], first["name"], first["config"]["seed"]) == ("emoji", "toy", 3)
    assert wandb.logged == [{"step": 10, "loss": 2.0}, {"step": 20}] and wandb.finished == 2
    assert len(read_metrics(workdir)) == 2


def test_a_login_that_is_missing_is_the_users_to_make(workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Stand("no API key configured"))
    with pytest.raises(UserError, match=r"config.train.wandb = 'emoji': no API key configured; .*WANDB_MODE=offline"):
        MetricsFiles(workdir, 0, tensorboard=False, wandb="emoji")


def test_the_package_is_asked_for_before_anything_is_compiled(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert [fault.field for fault in TrainConfig(wandb="emoji").faults()] == ["wandb"]
    assert not list(TrainConfig().faults())

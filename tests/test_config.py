"""The configuration door: nothing unknown, missing or mistyped gets through, and the message names it."""

import dataclasses

import pytest

from nextflow_jax.config import Fault, from_config_dict, load_experiment, preflight, to_config_dict, to_plain_dict
from nextflow_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    sizes: tuple[tuple[int, int], ...] = ((32, 32),)

    def faults(self):
        if self.rate > 1:
            yield Fault("rate", self.rate, "must be at most 1", "use 0.1")


@dataclasses.dataclass(frozen=True)
class Outer:
    steps: int = 3
    name: str = "a"
    ready: bool = False
    inner: Inner = Inner()


EXPERIMENT = """
from nextflow_jax.config import to_config_dict
import dataclasses
@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    sizes: tuple = (1, 2)
@dataclasses.dataclass(frozen=True)
class Outer:
    steps: int = 3
    name: str = "a"
    ready: bool = False
    inner: Inner = Inner()
def get_config(variant):
    return to_config_dict(Outer(name=variant or "plain"))
"""


@pytest.fixture
def experiment(tmp_path):
    file = tmp_path / "toy.py"
    file.write_text(EXPERIMENT)
    return str(file)


def test_round_trip_through_config_dict_and_json():
    config = Outer(steps=5, inner=Inner(sizes=((8, 16), (16, 8))))
    assert from_config_dict(Outer, to_config_dict(config)) == config
    assert from_config_dict(Outer, to_plain_dict(config)) == config


def test_all_faults_are_reported_at_once_with_full_names():
    values = {"stesp": 1, "name": 4, "ready": 1, "inner": {"rate": "fast", "sizes": [[1, 2, 3]]}}
    with pytest.raises(UserError) as caught:
        from_config_dict(Outer, values)
    message = str(caught.value)
    for part in (
        "config.stesp",
        "did you mean steps?",
        "config.steps is missing",
        "config.name",
        "config.ready",
        "config.inner.rate",
        "config.inner.sizes[0]",
    ):
        assert part in message


def test_what_an_older_version_saved_is_filled_up():
    saved = {"steps": 5, "inner": {"sizes": [[1, 2]]}}
    assert from_config_dict(Outer, saved, fill=True) == Outer(steps=5, inner=Inner(sizes=((1, 2),)))
    with pytest.raises(UserError, match="config.inner.rate is missing"):
        from_config_dict(Outer, saved)
    with pytest.raises(UserError, match="config.stesp is not a configuration key"):
        from_config_dict(Outer, {"stesp": 1}, fill=True)


def test_preflight_collects_rules_of_the_whole_tree():
    with pytest.raises(UserError, match="config.inner.rate = 2.0: must be at most 1; use 0.1; config.mesh"):
        preflight(Outer(inner=Inner(rate=2.0)), extra=[Fault("config.mesh", 3, "does not divide", "use 2")])
    preflight(Outer())


def test_overrides_keep_types(experiment):
    config = load_experiment(experiment + ":b", ["steps=7", "inner.rate=1", "ready=true", "name=2", "inner.sizes=(3,)"])
    assert config.to_dict() == {"steps": 7, "name": "2", "ready": True, "inner": {"rate": 1.0, "sizes": (3,)}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stps=1", "config.stps is not a configuration key; did you mean steps?"),
        ("inner.rat=1", "config.inner.rat is not a configuration key; did you mean rate?"),
        ("steps.x=1", "config.steps.x"),
        ("steps=fast", "config.steps = fast: expects int"),
        ("inner=3", "is a group of keys"),
        ("steps", "no value"),
    ],
)
def test_bad_overrides_are_one_clear_message(experiment, override, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        load_experiment(experiment, [override])


def test_missing_experiments_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_experiment(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="get_config"):
        load_experiment(str(tmp_path / "empty.py"))


@dataclasses.dataclass(frozen=True)
class Part:
    size: int = 1

    def faults(self):
        if self.size < 1:
            yield Fault("size", self.size, "must be positive", "use 1")


@dataclasses.dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...] = (Part(), Part(2))


def test_tuples_of_groups_go_both_ways_and_keep_their_rules():
    assert from_config_dict(Whole, to_config_dict(Whole())) == Whole()
    with pytest.raises(UserError, match=r"config.parts.1.size = 0: must be positive"):
        preflight(Whole((Part(), Part(0))))
    with pytest.raises(UserError, match=r"config.parts\[0\].size = 'a'"):
        from_config_dict(Whole, {"parts": [{"size": "a"}]})


def test_an_override_reaches_into_tuples_of_groups(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(
        "from nextflow_jax.config import to_config_dict\n"
        "from tests.test_config import Whole\n"
        "def get_config(variant):\n    return to_config_dict(Whole())\n"
    )
    config = load_experiment(str(path), ["parts.1.size=7"])
    assert from_config_dict(Whole, config) == Whole((Part(), Part(7)))
    with pytest.raises(UserError, match=r"config\.parts\.2 is not a configuration key; known: 0, 1"):
        load_experiment(str(path), ["parts.2.size=7"])
    for wrong in ("parts.x.size=7", "parts.0=7", "parts.0.length=7"):
        with pytest.raises(UserError, match=r"config\.parts"):
            load_experiment(str(path), [wrong])

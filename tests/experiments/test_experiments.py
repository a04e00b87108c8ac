import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from nextflow_jax.config import from_config_dict, load_experiment, preflight
from nextflow_jax.data.ingest.config import IngestConfig
from nextflow_jax.errors import UserError
from nextflow_jax.training.metrics import read_metrics
from tests.experiments.abstract import ALL_SPECS, GOLDEN, INGEST_SPECS, KINDS, ROOT, SPECS, build, sharding_rows

FILES = sorted({spec.partition(":")[0] for spec in ALL_SPECS})
BASE = str(ROOT / "experiments" / "openmoji" / "base.py")


@pytest.mark.parametrize("spec", [*SPECS, *(f"{spec},smoke" for spec in SPECS)])
def test_every_experiment_keeps_all_rules(spec):
    experiment = build(spec)
    preflight(experiment)
    assert experiment.kind in KINDS and experiment.name


@pytest.mark.parametrize("spec", INGEST_SPECS)
def test_every_ingest_keeps_all_rules(spec):
    preflight(from_config_dict(IngestConfig, load_experiment(str(ROOT / spec))))


@pytest.mark.parametrize("spec", SPECS)
def test_shardings_are_those_of_the_golden_file(spec):
    """A difference is a change of memory and speed: look at it, then write the file anew (see abstract.py)."""
    golden = json.loads(GOLDEN.read_text())
    assert list(golden) == SPECS
    assert sharding_rows(build(spec)) == golden[spec]


@pytest.mark.parametrize("file", FILES)
def test_the_docstring_says_what_it_reproduces_how_and_with_what_result(file):
    docstring = load_docstring(ROOT / file)
    for word in ("Command", "Cost:", "Result:"):
        assert word in docstring, f"{file}: its docstring lacks {word!r}"
    for name in re.findall(r"nextflow_jax\.(\w+)", docstring):
        module = ROOT / "nextflow_jax" / name
        assert module.with_suffix(".py").exists() or module.is_dir(), f"{file}: there is no command {name}"


@pytest.mark.parametrize("variant", ["tokeniser", "tokenizer,decoder", "decoder,smok"])
def test_unknown_and_contradictory_variants_are_refused(variant):
    with pytest.raises(UserError, match="variant|one of them"):
        load_experiment(f"{BASE}:{variant}")


def test_the_base_experiment_trains_every_kind(tmp_path):
    """The smoke variant, two steps a kind, extraction between them. The quickstart's is run by tests/test_launch.py."""
    base, steps = "experiments/openmoji/base.py", ["--config.train.steps=2"]
    folder = {name: str(tmp_path / name) for name in ("contrastive", "tokenizer", "shards", "decoder")}
    teacher, shards = f"--config.teacher={folder['contrastive']}", f"--config.pipeline.shards={folder['shards']}"
    commands = [
        ("train", "--config", f"{base}:contrastive,smoke", "--workdir", folder["contrastive"], *steps),
        ("train", "--config", f"{base}:tokenizer,smoke", "--workdir", folder["tokenizer"], *steps, teacher),
        ("extract", "--config", f"{base}:smoke", "--tokenizer", folder["tokenizer"], "--out", folder["shards"]),
        ("train", "--config", f"{base}:smoke", "--workdir", folder["decoder"], *steps, shards),
    ]
    # One process for all: importing takes longer than two steps. On one device, which compiles faster than eight.
    program = f"""
import importlib
for name, *arguments in {commands!r}:
    importlib.import_module(f"nextflow_jax.{{name}}").main(arguments)
"""
    environment = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in KINDS:
        assert (tmp_path / kind / "checkpoints" / "2").is_dir()
        assert all(record["loss"] > 0 for record in read_metrics(tmp_path / kind))


def load_docstring(path: pathlib.Path) -> str:
    return compile(path.read_text(), str(path), "exec").co_consts[0]

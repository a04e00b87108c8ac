"""The command: one JSON object, exit statuses, what it writes; on simulated devices, and for a TPU where libtpu is."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental import serialize_executable

from nextflow_jax import compile as compile_command
from nextflow_jax.aot import chips
from nextflow_jax.errors import DoesNotFit, UserError

DECODER = "experiments/nextflow/decoder.py:pretrain_256,smoke"
TOKENIZER = "experiments/nextflow/tokenizer.py:decoder,small,smoke"
KEYS = {
    *("topology", "slices", "chips", "params", "tokens_per_step", "model_flops_per_step", "hbm", "collectives"),
    *("step_seconds_estimate", "mfu_bound", "compile_seconds", "fits"),
}
"""The contract; others may be added."""


def run(capsys, *arguments):
    compile_command.main(list(arguments))
    return json.loads(capsys.readouterr().out)


def test_a_training_step_that_does_not_fit(capsys, tmp_path, monkeypatch):
    """It is compiled all the same: everything is told and written, and the exit status is 3."""
    small = dataclasses.replace(chips.CHIPS["cpu"], hbm_limit=2**19)
    monkeypatch.setitem(chips.CHIPS, "cpu", small)
    saved, dump = tmp_path / "step.bin", tmp_path / "dump"
    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=2")
    flags = ("--save", str(saved), "--dump", str(dump))
    with pytest.raises(DoesNotFit, match=r"train needs .* GiB of a device's 0.00; try .*--config"):
        compile_command.main(["--config", DECODER, "--topology", "cpu:4", *mesh, *flags])
    result = json.loads(capsys.readouterr().out)
    assert result.keys() >= KEYS
    assert (result["chips"], result["simulated"], result["fits"]) == (4, True, False)
    assert result["tokens_per_step"] == 4 * 256
    assert result["hbm"]["headroom"] == result["hbm"]["limit"] - result["hbm"]["peak"] < 0
    assert result["collectives"]["all-gather"]["count"] > 0
    assert 0 < result["mfu_bound"] <= 1
    assert {path.name for path in dump.iterdir()} == {"train.stablehlo.txt", "train.hlo.txt"}
    assert saved.stat().st_size > 1000


def test_a_saved_executable_runs(tmp_path):
    lowered = jax.jit(lambda x: 2 * x).lower(jax.ShapeDtypeStruct((3,), np.float32))
    compile_command.save_executable(tmp_path / "double.bin", lowered.compile())
    loaded = serialize_executable.deserialize_and_load(
        (tmp_path / "double.bin").read_bytes(), lowered.in_tree, lowered.out_tree, execution_devices=jax.devices()[:1]
    )
    np.testing.assert_array_equal(loaded(np.ones(3, np.float32)), 2 * np.ones(3))


@pytest.mark.parametrize("program", ["extract", "sample"])
def test_programs_that_use_models(capsys, program):
    flags = ("--tokenizer", TOKENIZER, "--config.evaluation.batch_size=2")
    result = run(capsys, "--config", DECODER, "--topology", "cpu:2", "--program", program, *flags)
    assert result.keys() >= KEYS
    assert (result["program"], result["fits"]) == (program, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config", DECODER, "--topology", "v7:2x2"), "'v7' is no generation"),
        (("--config", "experiments/openmoji/quickstart.py:decoder", "--topology", "cpu:2"), "vocabulary.text_size=N"),
        (("--config", DECODER, "--topology", "cpu:2", "--config.mesh.data=3"), "there are 2"),
        (("--config", DECODER, "--topology", "cpu:2", "--program", "sample"), "need a vision tokenizer"),
        (("--config", TOKENIZER, "--topology", "cpu:2", "--program", "extract"), "only a decoder experiment"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        compile_command.main(list(arguments))


def test_without_libtpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(UserError, match="needs libtpu .*pip install"):
        compile_command.main(["--config", DECODER, "--topology", "v5e:2x2"])


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="NOT TESTED HERE: compiling for a real TPU topology needs libtpu (pip install 'nextflow_jax[tpu]')",
)
def test_a_step_for_a_tpu():
    command = (sys.executable, "-m", "nextflow_jax.compile", "--config", DECODER, "--topology", "v5e:2x2")
    done = subprocess.run([*command, "--effort", "-1"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["chips"], result["simulated"], result["fits"]) == (4, False, True)
    assert "all-to-all" not in result["collectives"]

"""The command: one JSON object, exit statuses, what it writes; on simulated devices, and for a TPU where libtpu is."""

import dataclasses
import errno
import importlib.util
import json
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest

from nextflow_jax import compile as compile_command
from nextflow_jax.aot import chips
from nextflow_jax.aot.compiling import CompiledProgram, Memory
from nextflow_jax.aot.saved import load_executable
from nextflow_jax.errors import DoesNotFit, UserError

DECODER = "experiments/nextflow/decoder.py:pretrain_256,smoke"
TOKENIZER = "experiments/nextflow/tokenizer.py:decoder,small,smoke"
KEYS = {
    *("topology", "slices", "chips", "params", "tokens_per_step", "model_flops_per_step", "hbm", "collectives"),
    *("step_seconds_estimate", "mfu_bound", "trace_and_lower_seconds", "compile_seconds", "fits"),
}
"""The contract; others may be added."""


def run(capsys, *arguments):
    compile_command.main(list(arguments))
    return json.loads(capsys.readouterr().out)


def test_a_training_step_that_does_not_fit(capsys, tmp_path, monkeypatch):
    """It is compiled all the same: everything is told and written, in new folders, and the exit status is 3."""
    small = dataclasses.replace(chips.CHIPS["cpu"], hbm_limit=2**19)
    monkeypatch.setitem(chips.CHIPS, "cpu", small)
    saved, dump = tmp_path / "new" / "step.bin", tmp_path / "new" / "dump"
    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=2")
    flags = ("--save", str(saved), "--dump", str(dump))
    with pytest.raises(DoesNotFit, match=r"train needs .* GiB of a device's 0.00; try .*--config"):
        compile_command.main(["--config", DECODER, "--topology", "cpu:4", *mesh, *flags])
    result = json.loads(capsys.readouterr().out)
    assert result.keys() >= KEYS
    assert (result["chips"], result["simulated"], result["fits"]) == (4, True, False)
    assert result["tokens_per_step"] == 4 * 256
    hbm = result["hbm"]
    assert hbm["headroom"] == hbm["limit"] - hbm["peak"] < 0
    assert hbm["peak"] >= hbm["arguments"] + hbm["temporaries"]
    assert 0 < result["trace_and_lower_seconds"] < 60
    assert result["collectives"]["all-gather"]["count"] > 0
    assert 0 < result["mfu_bound"] <= 1
    assert {path.name for path in dump.iterdir()} == {"train.stablehlo.txt", "train.hlo.txt", "sharding.txt"}
    table = (dump / "sharding.txt").read_text()
    assert table.split()[:3] == ["array", "shape", "dtype"] and "params/layers/attention/query/kernel" in table
    step = load_executable(saved, jax.devices()[:4])
    zeros = jax.tree.map(
        lambda leaf, placement: jax.device_put(np.zeros(leaf.shape, leaf.dtype), placement),
        step.in_avals,
        step.input_shardings,
    )
    state, metrics = step(*zeros[0])
    assert int(state.step) == 1 and "loss" in metrics.fetch()


def test_what_is_known_of_a_refused_program_is_written(capsys, tmp_path, monkeypatch):
    refused = CompiledProgram(Memory(2**34, 2**34, 2**35), 1.0, 0.0, None)
    monkeypatch.setattr(compile_command, "compile_program", lambda *_: refused)
    with pytest.raises(DoesNotFit):
        compile_command.main(["--config", DECODER, "--topology", "cpu:2", "--dump", str(tmp_path / "dump")])
    assert json.loads(capsys.readouterr().out)["fits"] is False
    assert {path.name for path in (tmp_path / "dump").iterdir()} == {"train.stablehlo.txt", "sharding.txt"}


def test_a_disk_that_fills_costs_no_result(capsys, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    compiled = CompiledProgram(
        Memory(1, 1, 2), 1.0, 0.0, mock.Mock(jax.stages.Compiled, as_text=lambda: "ENTRY %main () -> f32[] {\n}")
    )
    monkeypatch.setattr(compile_command, "compile_program", lambda *_: compiled)
    monkeypatch.setattr(compile_command, "save_executable", full)
    with pytest.raises(UserError, match=r"--save: .*step.bin cannot be written \(No space left"):
        compile_command.main(["--config", DECODER, "--topology", "cpu:2", "--save", str(tmp_path / "step.bin")])
    assert json.loads(capsys.readouterr().out)["fits"] is True


@pytest.mark.parametrize(
    ("flag", "path", "message"),
    [
        ("--save", "a_file/x.bin", "--save: .*a_file cannot be written"),
        ("--save", ".", "is a folder; name a file"),
        ("--dump", "a_file", "--dump: .*a_file cannot be written"),
    ],
)
def test_what_cannot_be_written_is_refused_before_compiling(tmp_path, monkeypatch, flag, path, message):
    monkeypatch.setattr(compile_command, "plan", lambda *_: pytest.fail("was compiled"))
    (tmp_path / "a_file").touch()
    with pytest.raises(UserError, match=message):
        compile_command.main(["--config", DECODER, "--topology", "cpu:2", flag, str(tmp_path / path)])


@pytest.mark.parametrize("flags", [("--program", "sample"), ("--dump", "d"), ("--save", "f")])
def test_a_sweep_is_for_training_and_writes_nothing(flags):
    with pytest.raises(SystemExit) as ended:
        compile_command.main(["--config", DECODER, "--topology", "cpu:2", "--sweep", *flags])
    assert ended.value.code == 2


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

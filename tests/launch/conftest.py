"""Launch scripts run as a user runs them, with stand-ins for the programs that are not here."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def launch(tmp_path):
    """Runs launch/NAME with arguments; keyword arguments are environment variables, `stand_ins` a folder for PATH."""

    def run(name, *arguments, stand_ins=None, **variables):
        environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_PLATFORMS")}
        if stand_ins:
            environment["PATH"] = f"{stand_ins}:{environment['PATH']}"
        command = ["bash", str(ROOT / "launch" / name), *map(str, arguments)]
        options = {"capture_output": True, "text": True, "timeout": 60, "stdin": subprocess.DEVNULL}
        return subprocess.run(command, cwd=tmp_path, env={**environment, **variables}, **options)

    return run


@pytest.fixture
def dry(launch):
    """The lines that a launcher's dry run prints, checked to be a script that bash can read."""

    def lines(name, *arguments):
        done = launch(name, *arguments)
        assert done.returncode == 0, done.stderr
        assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0
        return done.stdout.splitlines()

    return lines


@pytest.fixture
def stand_in(tmp_path):
    """Puts a program of that name into a folder for PATH; it notes its arguments in `calls` before the body runs."""
    folder = tmp_path / "stand_ins"
    folder.mkdir()

    def make(name, body=""):
        script = folder / name
        script.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>{tmp_path}/calls\n{body}\n')
        script.chmod(0o755)
        return folder

    return make


@pytest.fixture
def calls(tmp_path):
    """What the stand-ins were called with, in order."""
    return lambda: (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []


@pytest.fixture
def trained(tmp_path):
    """Makes the folder of a run of five steps that stands at a step."""

    def make(step):
        run = tmp_path / "run"
        (run / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
        (run / "config.json").write_text('{"train": {"steps": 5}}')
        return run

    return make

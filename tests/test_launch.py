import configparser
import importlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from nextflow_jax.report.__main__ import STAGES

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = sorted([*(ROOT / "launch").rglob("*.sh"), ROOT / ".ci" / "run"])
COMMANDS = ("train", "extract", "export", "sample", "evaluate")


def run(*command, **options):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_and_stop_at_the_first_failure(script):
    assert run("bash", "-n", str(script)).returncode == 0
    assert "set -euo pipefail" in script.read_text()
    assert os.access(script, os.X_OK)


def test_scripts_have_no_faults_that_shellcheck_knows():
    shellcheck = pathlib.Path(sys.executable).parent / "shellcheck"
    found = run(shellcheck, "--external-sources", *map(str, SCRIPTS))
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_is_in_the_readme(name, capsys):
    command = importlib.import_module(f"nextflow_jax.{name}")
    with pytest.raises(SystemExit) as helped:
        command.main(["--help"])
    assert helped.value.code == 0 and "example:" in capsys.readouterr().out
    assert f"python -m nextflow_jax.{name}" in (ROOT / "README.md").read_text()
    with pytest.raises(SystemExit) as refused:
        command.main(["--no-such-flag"])
    assert refused.value.code == 2 and "usage:" in capsys.readouterr().err


def test_readme_and_workspace_name_only_what_exists():
    for document in ("README.md", "WORKSPACE.md"):
        text = (ROOT / document).read_text()
        links = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
        quoted = re.findall(r"`((?:nextflow_jax|experiments|launch|tests)/[\w./-]*)`", text)
        listed = re.findall(r"^ {4}((?:nextflow_jax|experiments|launch|tests)/[\w./-]*)", text, re.MULTILINE)
        missing = [name for name in {*links, *quoted, *listed} if not (ROOT / name).exists()]
        assert not missing, f"{document} names {missing}"


def test_workspace_lists_every_room_of_the_package():
    text = (ROOT / "WORKSPACE.md").read_text()
    rooms = [path.name for path in (ROOT / "nextflow_jax").iterdir() if (path / "__init__.py").is_file()]
    modules = [path.name for path in (ROOT / "nextflow_jax").glob("*.py") if path.name != "__init__.py"]
    absent = [name for name in (*(f"{room}/" for room in rooms), *modules) if name not in text]
    assert not absent


def test_dependencies_have_a_range_an_exact_version_and_a_reason():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = dict(setup["options.extras_require"])
    names = ("openmoji", "photographs", "hf", "eval", "dev")
    required = [setup["options"]["install_requires"], *(extras[name] for name in names)]
    lines = [line for text in required for line in text.split("\n") if line]
    pins = dict(line.split("==") for line in read_lines("launch/constraints.txt"))
    exact = {normal(name): version for name, version in pins.items()}
    workspace = (ROOT / "WORKSPACE.md").read_text()
    for line in lines:
        name = re.split(r"[<>=\[]", line)[0]
        assert ">=" in line, f"{line}: no range"
        assert normal(name) in exact, f"{name}: no exact version in launch/constraints.txt"
        assert f"`{name}`" in workspace, f"{name}: WORKSPACE.md gives no reason"


def test_quickstart_runs_the_stages_that_the_report_lists():
    text = (ROOT / "launch" / "quickstart.sh").read_text()
    assert tuple(re.findall(r"^(?:stage|train) (\w+)", text, re.MULTILINE)) == STAGES


def test_quickstart_refuses_unknown_flags():
    refused = run("bash", "launch/quickstart.sh", "--fast")
    assert refused.returncode == 2 and "usage:" in refused.stderr


@pytest.fixture
def stages(tmp_path):
    """The script up to its functions, followed by stages of our own."""
    functions = (ROOT / "launch" / "quickstart.sh").read_text().split("\npython=")[0]
    script = tmp_path / "launch" / "stages.sh"
    script.parent.mkdir()

    def start(*commands):
        script.write_text("\n".join([functions, *commands]))
        return subprocess.Popen(["bash", str(script), str(tmp_path / "run")], text=True, stderr=subprocess.PIPE)

    return start


def seconds(tmp_path, name):
    return int((tmp_path / "run" / "seconds" / name).read_text())


def test_a_stage_keeps_its_time_over_reruns_and_a_failure_stops_the_script(stages, tmp_path):
    for expected in (1, 2):
        process = stages("stage first sleep 1", "stage second false", "stage third true")
        assert "stage second failed (status 1)" in process.communicate()[1]
        assert process.returncode == 1
        assert seconds(tmp_path, "first") in (expected, expected + 1)
    assert not (tmp_path / "run" / "seconds" / "third").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_stage_save_and_ends_the_script(stages, tmp_path, number, status):
    saved, ready = tmp_path / "saved", tmp_path / "ready"
    child = f"trap 'sleep 0.2; touch {saved}; exit 0' TERM; touch {ready}; sleep 20 & wait"
    process = stages(f'stage slow bash -c "{child}"', "stage next true")
    while not ready.exists():
        time.sleep(0.05)
    process.send_signal(number)
    assert "stopped in stage slow; run the same command again" in process.communicate(timeout=10)[1]
    assert process.returncode == status and saved.exists()
    assert not (tmp_path / "run" / "seconds" / "next").exists()


@pytest.mark.end_to_end
def test_quickstart_smoke_from_nothing_to_the_report(tmp_path):
    """The script itself, with its smoke settings, on one device."""
    environment = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")}
    command = ["bash", "launch/quickstart.sh", "--smoke", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert tuple(metrics["seconds"]) == STAGES
    assert {"psnr_train", "t2i_retrieval_at_1", "caption_exact_match", "edit_retrieval_at_1", "heldout"} <= set(metrics)
    page = (tmp_path / "report" / "index.html").read_text()
    for heading in ("Results", "Text to image", "Held-out", "Edits", "Captions", "Reconstructions", "Training"):
        assert f"<h2>{heading}" in page
    assert (tmp_path / "bundle" / "bundle.json").is_file()


def read_lines(name):
    return [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()

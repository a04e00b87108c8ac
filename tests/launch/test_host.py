import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
HOST = ["bash", str(ROOT / "launch/host.sh"), "cpu"]
SHOW = ["bash", "-c", 'echo "$XLA_FLAGS|$CUDA_DEVICE_MAX_CONNECTIONS"']


def test_our_flags_go_before_those_that_are_set_and_other_variables_are_kept(launch):
    flags, connections = launch("host.sh", "gpu", "--", *SHOW).stdout.strip().split("|")
    assert flags.startswith("--xla_gpu_") and connections == "1"
    kept = launch("host.sh", "gpu", "--", *SHOW, XLA_FLAGS="--mine=1", CUDA_DEVICE_MAX_CONNECTIONS="")
    assert kept.stdout.strip() == f"{flags} --mine=1|"


def test_a_dry_run_prints_what_would_be_typed(dry):
    lines = dry("host.sh", "v5p", "--log", "my logs", "--dry-run", "--", "python", "it's", "--flag=1")
    assert lines[0].startswith("export LIBTPU_INIT_ARGS='--xla_tpu_")
    assert lines[1:] == ["mkdir -p 'my logs'", "python 'it'\\''s' --flag=1"]


def test_the_log_is_named_by_the_process_and_goes_on(launch, tmp_path):
    for word in ("first", "second"):
        done = launch("host.sh", "cpu", "--log", tmp_path / "logs", "--", "echo", word, JAX_PROCESS_ID="3")
        assert done.returncode == 0 and word in done.stdout
    log = tmp_path / "logs" / "process-3.log"
    assert wait_for(lambda: log.read_text().split() == ["first", "second"])


@pytest.mark.parametrize(
    ("step", "command", "status"), [(5, "exit 0", 0), (3, "exit 0", 75), (5, "exit 3", 3), (3, "exit 134", 134)]
)
def test_training_is_done_when_its_last_step_is_saved(launch, tmp_path, trained, step, command, status):
    arguments = ["cpu", "--until-complete", "--log", tmp_path, "--", "bash", "-c", command, "--workdir", trained(step)]
    assert launch("host.sh", *arguments, JAX_PROCESS_ID="0").returncode == status
    assert (tmp_path / "process-0.log.status").read_text() == f"{status}\n"


def test_a_command_without_a_workdir_is_done_when_it_ends(launch):
    assert launch("host.sh", "cpu", "--until-complete", "--", "true").returncode == 0


def test_sigterm_is_passed_on_and_waited_for(tmp_path, trained):
    run, ready = trained(3), tmp_path / "ready"
    child = f"trap 'kill $!; touch {tmp_path}/saved; exit 0' TERM; sleep 20 >/dev/null 2>&1 & touch {ready}; wait"
    process = start_until_complete(child, run)
    assert wait_for(ready.exists)
    process.send_signal(signal.SIGTERM)
    assert "stopped before the last step" in process.communicate(timeout=10)[1]
    assert process.returncode == 75 and (tmp_path / "saved").exists()


def test_a_job_that_could_not_save_when_told_to_stop_is_tried_again(tmp_path, trained):
    child = f"trap 'kill $!; exit 137' TERM; sleep 20 >/dev/null 2>&1 & touch {tmp_path}/ready; wait"
    process = start_until_complete(child, trained(3))
    assert wait_for((tmp_path / "ready").exists)
    process.send_signal(signal.SIGTERM)
    assert "before it had saved" in process.communicate(timeout=10)[1]
    assert process.returncode == 75


def test_a_profile_is_asked_of_the_command_and_the_job_goes_on(tmp_path, trained):
    listening = "import pathlib, signal, time; signal.signal(signal.SIGUSR1, lambda *_: exit(0)); "
    listening += f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
    # A pause could begin just after the signal, and would then last.
    listening += "while True: time.sleep(0.05)"
    command = [sys.executable, "-c", listening, "--workdir", str(trained(5))]
    process = subprocess.Popen([*HOST, "--until-complete", "--", *command], stderr=subprocess.PIPE, text=True)
    assert wait_for((tmp_path / "ready").exists)
    process.send_signal(signal.SIGUSR1)
    assert process.communicate(timeout=10)[1] == "" and process.returncode == 0


@pytest.mark.parametrize("options", [[], ["--until-complete"]])
def test_a_profile_that_nobody_listens_for_ends_nothing(tmp_path, options):
    """Nor does one that comes before the command is there."""
    process = subprocess.Popen([*HOST, *options, "--", "bash", "-c", f"touch {tmp_path}/ready; sleep 0.5; exit 7"])
    assert wait_for((tmp_path / "ready").exists)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=10) == 7


@pytest.mark.parametrize("arguments", [["--", "true"], ["cpu"], ["cpu", "--fast", "--", "true"]])
def test_wrong_usage_is_refused(launch, arguments):
    done = launch("host.sh", *arguments)
    assert done.returncode == 2 and "usage:" in done.stderr


def start_until_complete(child, workdir):
    command = [*HOST, "--until-complete", "--", "bash", "-c", child, "--workdir", str(workdir)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for(condition):
    for _ in range(100):
        if condition():
            return True
        time.sleep(0.05)
    return False

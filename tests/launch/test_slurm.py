import os
import pathlib
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
TRAIN = ["--run", "python", "-m", "nextflow_jax.train", "--workdir", "a run"]


@pytest.mark.parametrize(("task", "tasks"), [("gpu", 8), ("node", 1)])
def test_the_job_has_a_task_a_gpu_or_a_node_and_comes_back(dry, task, tasks):
    options = ["--nodes", "4", "--task", task, "--log", "logs", "--save", "300", "--dry-run"]
    lines = dry("slurm/submit.sh", *options, "--", "--partition=p", *TRAIN)
    assert lines[0] == "mkdir -p logs"
    words = lines[1].split()
    for wanted in (
        f"--nodes 4 --ntasks-per-node {tasks} --gpus-per-node 8",
        "--time 24:00:00 --signal B:TERM@300 --requeue --open-mode append --output logs/job-%j.log --partition=p",
        f"{LAUNCH}/slurm/job.sh {LAUNCH} logs 100 python -m nextflow_jax.train --workdir 'a run'",
    ):
        assert wanted in " ".join(words)


@pytest.fixture
def job(tmp_path, stand_in):
    """Starts job.sh where srun is a stand-in that runs its body."""

    def start(body, workdir, **variables):
        stand_in("scontrol")
        stand_in("scancel", f"kill -TERM $(cat {tmp_path}/srun.pid)")
        folder = stand_in("srun", f'echo $$ >{tmp_path}/srun.pid; echo "ids $JAX_LOCAL_DEVICE_IDS"\n{body}')
        slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "8", "SLURM_GPUS_ON_NODE": "4", **variables}
        environment = {**os.environ, **slurm, "PATH": f"{folder}:{os.environ['PATH']}"}
        command = ["bash", str(LAUNCH / "slurm/job.sh"), str(LAUNCH), str(tmp_path / "logs"), "2", "train", "--workdir"]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*command, str(workdir)], env=environment, **options)

    return start


@pytest.mark.parametrize(
    ("step", "status", "restarts", "requeued"),
    [(5, 0, 0, False), (3, 0, 9, True), (3, 1, 0, False), (3, 75, 1, True), (3, 75, 2, False)],
)
def test_it_is_put_back_until_complete(job, calls, trained, step, status, restarts, requeued):
    process = job(f"exit {status}", trained(step), SLURM_RESTART_COUNT=str(restarts))
    process.communicate(timeout=10)
    assert process.returncode == status
    assert ("scontrol requeue 7" in calls()) == requeued


def test_sigterm_goes_to_the_tasks_and_the_job_waits_for_them_to_save(job, calls, trained, tmp_path):
    body = (
        f"trap 'kill $!; touch {tmp_path}/saved; exit 0' TERM; sleep 20 >/dev/null 2>&1 & touch {tmp_path}/ready; wait"
    )
    process = job(body, trained(3))
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert "back into the queue" in process.communicate(timeout=10)[1]
    assert (tmp_path / "saved").exists()
    assert calls()[1:] == ["scancel --signal TERM 7", "scontrol requeue 7"]


@pytest.mark.parametrize(("tasks", "ids"), [("1", "0,1,2,3"), ("4", "")])
def test_a_task_a_node_has_all_its_gpus(job, trained, tasks, ids):
    said = job("exit 0", trained(5), SLURM_NTASKS_PER_NODE=tasks).communicate(timeout=10)[0]
    assert said.splitlines()[0] == f"ids {ids}"


def test_every_process_gets_flags_and_a_log(job, calls, trained, tmp_path):
    job("exit 0", trained(5)).communicate(timeout=10)
    host = f"bash {LAUNCH}/host.sh gpu --log {tmp_path}/logs -- train --workdir"
    assert calls()[0].startswith(f"srun --kill-on-bad-exit=1 {host}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--log", "l"], "COMMAND is missing"),
        (TRAIN, "--log is missing"),
        (["--log", "l", "--task", "core", *TRAIN], "must be gpu or node"),
        (["--log", "l", "--nodes", "0", *TRAIN], "0 is not a positive number"),
    ],
)
def test_wrong_usage_is_refused(launch, arguments, said):
    done = launch("slurm/submit.sh", *arguments)
    assert done.returncode == 2 and said in done.stderr

import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def test_a_dry_run_shows_supervisor_and_host(dry):
    options = ["--processes", "4", "--devices", "2", "--log", "logs", "--max-restarts", "3", "--dry-run"]
    (line,) = dry("local.sh", *options, "--", "python", "-m", "nextflow_jax.train", "--workdir", "a run")
    supervise = "-m nextflow_jax.supervise --processes 4 --devices 2 --max_restarts 3 -- bash "
    assert supervise in line
    assert line.endswith("launch/host.sh cpu --log logs -- python -m nextflow_jax.train --workdir 'a run'")


@pytest.mark.parametrize("arguments", [[], ["--processes", "few", "--", "true"], ["--fast", "--", "true"]])
def test_wrong_usage_is_refused(launch, arguments):
    done = launch("local.sh", *arguments)
    assert done.returncode == 2 and "usage:" in done.stderr


def test_processes_are_started_as_one_job_and_each_has_its_log(launch, tmp_path):
    show = "echo $JAX_PROCESS_ID of $JAX_NUM_PROCESSES, $JAX_PLATFORMS $XLA_FLAGS"
    options = ["--processes", "2", "--devices", "3", "--log", tmp_path / "logs"]
    done = launch("local.sh", *options, "--", "bash", "-c", show, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    flags = "cpu --xla_force_host_platform_device_count=3"
    said = f"0 of 2, {flags}\n", f"1 of 2, {flags}\n"
    assert said[0] in done.stdout and f"[1] {said[1]}" in done.stderr
    assert tuple((tmp_path / "logs" / f"process-{n}.log").read_text() for n in range(2)) == said


def test_the_status_of_a_mistake_is_the_jobs(launch):
    done = launch("local.sh", "--processes", "1", "--devices", "0", "--", "bash", "-c", "exit 2", PYTHONPATH=str(ROOT))
    assert done.returncode == 2 and "restart" not in done.stderr

import pytest


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

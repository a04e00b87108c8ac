import re

import pytest

PLACE = ["--name", "nf", "--zone", "us-east5-a"]
ONE = [*PLACE, "--slices", "1"]
TRAIN = ["--", "python", "-m", "nextflow_jax.train", "--workdir", "../bucket/a run"]
GCLOUD = "gcloud compute tpus"
HOSTS = "--zone us-east5-a --worker=all --batch-size=all"


@pytest.mark.parametrize(
    ("type_", "runtime"),
    [("v5p-512", "v2-alpha-tpuv5"), ("v5litepod-256", "v2-alpha-tpuv5-lite"), ("v6e-256", "v2-alpha-tpuv6e")],
)
def test_slices_are_asked_for_with_the_software_of_their_type(dry, type_, runtime):
    request = f"--accelerator-type {type_} --runtime-version {runtime}"
    one = dry("tpu_pod.sh", "create", *PLACE, "--type", type_, "--dry-run")
    assert one == [f"{GCLOUD} queued-resources create nf --zone us-east5-a {request} --node-id nf"]
    terms = ["--slices", "2", "--spot", "--project", "p"]
    two = dry("tpu_pod.sh", "create", *PLACE, *terms, "--type", type_, "--dry-run")
    place = "--zone us-east5-a --project p"
    assert two == [f"{GCLOUD} queued-resources create nf {place} {request} --node-count 2 --node-prefix nf --spot"]


def test_setup_copies_the_commit_to_every_slice_and_installs(dry):
    lines = dry("tpu_pod.sh", "setup", *PLACE, "--slices", "2", "--bucket", "b", "--dry-run")
    assert "archive --format=tar.gz --output /tmp/nf.tar.gz HEAD" in lines[0]
    assert [line.split(": ")[0] for line in lines[1:3]] == [
        f"{GCLOUD} tpu-vm scp /tmp/nf.tar.gz nf-{index}" for index in range(2)
    ]
    assert all(f"{GCLOUD} tpu-vm ssh nf-{index} {HOSTS} --command" in lines[3 + index] for index in range(2))
    assert "EXTRAS=tpu,remote,hf bash launch/setup.sh" in lines[3] and "gcsfuse --implicit-dirs b" in lines[3]


def test_every_host_starts_the_command_with_flags_and_supervisor(dry):
    (line,) = dry("tpu_pod.sh", "start", *ONE, "--type", "v6e-16", "--dry-run", *TRAIN)
    assert line.startswith(f"{GCLOUD} tpu-vm ssh nf {HOSTS}")
    assert "launch/host.sh v6e --log logs --until-complete -- .venv/bin/python -m nextflow_jax.supervise" in line
    assert "nextflow_jax.supervise --maintenance gce -- python" in line
    assert "'\\''../bucket/a run'\\''" in line  # quoted once for this shell and once for the host's
    assert "NEXTFLOW_JAX_CACHE" not in line and "WANDB" not in line


def test_compiled_programs_are_kept_where_all_hosts_find_them(dry):
    options = ["--type", "v6e-16", "--bucket", "b", "--dry-run"]
    (line,) = dry("tpu_pod.sh", "start", *ONE, *options, *TRAIN)
    assert "else export NEXTFLOW_JAX_CACHE=~/bucket/compile_cache; setsid nohup" in line


def test_weights_and_biases_is_installed_and_its_key_fetched_by_the_host(dry):
    options = ["--type", "v6e-16", "--extras", "tpu,wandb", "--wandb-secret", "key", "--dry-run"]
    assert "EXTRAS=tpu,wandb bash launch/setup.sh" in dry("tpu_pod.sh", "setup", *ONE, *options)[-1]
    (line,) = dry("tpu_pod.sh", "start", *ONE, *options, *TRAIN)
    fetched = 'WANDB_API_KEY="$(gcloud secrets versions access latest --secret=key)" || exit 1; export WANDB_API_KEY; '
    assert f"else {fetched}setsid nohup" in line


def test_the_other_actions(dry):
    arguments = [*ONE, "--type", "v5p-8", "--dry-run"]
    assert dry("tpu_pod.sh", "delete", *arguments) == [
        f"{GCLOUD} queued-resources delete nf --zone us-east5-a --force --quiet"
    ]
    assert dry("tpu_pod.sh", "wait", *arguments) == [
        f"{GCLOUD} queued-resources describe nf --zone us-east5-a --format 'value(state.state)'"
    ]
    stop, start = dry("tpu_pod.sh", "stop", *arguments), dry("tpu_pod.sh", "start", *arguments, *TRAIN)
    assert dry("tpu_pod.sh", "restart", *arguments, *TRAIN) == [*stop, *start]
    assert "kill -TERM $(cat job.pid 2>/dev/null)" in stop[0]
    assert "--worker=3 --command 'tail" in dry("tpu_pod.sh", "logs", *arguments, "--worker", "3")[0]
    (profile,) = dry("tpu_pod.sh", "profile", *arguments, "--worker", "3")
    assert profile.endswith("--worker=3 --command 'kill -USR1 $(cat nextflow_jax/job.pid)'")


@pytest.mark.parametrize("action", ["stop", "status", "logs", "profile", "setup", "start"])
def test_an_action_finds_the_slices_of_the_request(launch, stand_in, calls, action):
    folder = stand_in("gcloud", 'case "$*" in *"tpu-vm list"*) echo nf-1; echo nf-0 ;; esac')
    stand_in("git")
    done = launch("tpu_pod.sh", action, *PLACE, "--type", "v5p-8", *TRAIN, stand_ins=folder)
    assert done.returncode == 0, done.stderr
    asked = [re.search(r"tpu-vm (?:ssh|scp /\S+) (nf\S*?):? ", call) for call in calls()]
    assert {match[1] for match in asked if match} == {"nf-0", *(() if action in ("logs", "profile") else ("nf-1",))}
    assert any("tpu-vm list --zone us-east5-a --filter queuedResource ~ /nf$" in call for call in calls())


def test_a_request_without_slices_is_said(launch, stand_in):
    done = launch("tpu_pod.sh", "stop", *PLACE, stand_ins=stand_in("gcloud"))
    assert done.returncode == 1 and "found no slices of queued resource nf" in done.stderr


@pytest.fixture
def keep(launch, stand_in, calls, tmp_path):
    """Runs `keep` where gcloud answers with these states and job statuses in turn; gives the result and the actions."""

    def run(states, statuses):
        (tmp_path / "states").write_text("\n".join(states) + "\n")
        (tmp_path / "statuses").write_text("\n".join(statuses) + "\n")
        take = f"take() {{ head -n 1 {tmp_path}/$1; sed -i 1d {tmp_path}/$1; }}\n"
        answers = 'case "$*" in *describe*) take states ;; *status*) take statuses | tr " " "\\n" ;; esac'
        stand_in("sleep")
        stand_in("git")
        folder = stand_in("gcloud", take + answers)
        done = launch("tpu_pod.sh", "keep", *PLACE, "--type", "v5p-8", "--spot", *TRAIN, stand_ins=folder)
        kinds = {"queued-resources create": "create", "queued-resources delete": "delete", " scp ": "copy"}
        kinds["nohup"] = "start"
        return done, [kinds[kind] for call in calls() for kind in kinds if kind in call]

    return run


def test_keep_asks_again_when_slices_are_lost_and_ends_when_training_is_complete(keep):
    """They are lost while the job runs; then it is stopped once before its end, a machine starts anew, it completes."""
    states = ["", "ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED", *["ACTIVE"] * 4]
    done, actions = keep(states, ["", "running", "", "75", "gone", "0"])
    assert done.returncode == 0, done.stderr
    start = ["copy", "start"]
    assert actions == ["create", *start, "delete", "create", *start, *start, *start]
    assert "nf was taken away; asking again" in done.stderr and "done." in done.stderr


def test_keep_goes_on_with_a_job_that_runs(keep):
    done, actions = keep(["ACTIVE", "ACTIVE", "ACTIVE"], ["running", "0"])
    assert done.returncode == 0 and actions == []


def test_keep_starts_what_maintenance_has_stopped_on_any_host(keep):
    """One comes back with nothing running; all save and end at a notice; one is quicker than another; all complete."""
    done, actions = keep(["ACTIVE"] * 6, ["running running", "running gone", "75 75", "running 75", "0 0"])
    assert done.returncode == 0, done.stderr
    assert actions == ["copy", "start"] * 3


@pytest.mark.parametrize("statuses", ["1", "running 1", "75 1 0"])
def test_keep_ends_when_the_job_has_failed(keep, statuses):
    done, actions = keep(["", "ACTIVE", "ACTIVE"], ["", statuses])
    assert done.returncode == 1 and "the job has failed" in done.stderr
    assert actions == ["create", "copy", "start"]


def test_wait_ends_when_the_request_has_failed(launch, stand_in):
    folder = stand_in("gcloud", "echo FAILED")
    done = launch("tpu_pod.sh", "wait", *PLACE, stand_ins=folder)
    assert done.returncode == 1 and "queued resource nf is FAILED" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "--zone", "z"], "--name is missing"),
        (["create", "--name", "n"], "--zone is missing"),
        (["create", *PLACE], "--type is missing"),
        (["create", *PLACE, "--type", "tpu7x-8"], "must be v5litepod-N, v5p-N or v6e-N"),
        (["start", *PLACE, "--type", "v5p-8"], "COMMAND is missing"),
        (["fly", *PLACE], "unknown action fly"),
        (["start", "--name"], "--name needs a value"),
        (["start", "--name", "--zone", "z"], "--name needs a value"),
    ],
)
def test_wrong_usage_is_refused(launch, arguments, said):
    done = launch("tpu_pod.sh", *arguments)
    assert done.returncode == 2 and said in done.stderr

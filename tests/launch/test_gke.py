import pathlib
import re

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
NAME = ["--name", "nf"]
TRAIN = ["--", "python", "-m", "nextflow_jax.train", "--workdir", "/bucket/run", '--config.name="a \\ b"']
SLICES = [
    ("v5e", "16x16", 2, 64, "tpu-v5-lite-podslice"),
    ("v5p", "4x4x8", 1, 32, "tpu-v5p-slice"),
    ("v6e", "16x16", 4, 64, "tpu-v6e-slice"),
    ("tpu7x", "4x4x4", 2, 16, "tpu7x"),
]


def manifest(dry, *options, platform="v5p", topology="4x4x8"):
    arguments = ["start", *NAME, "--platform", platform, "--topology", topology, "--image", "IMAGE", *options]
    lines = dry("gke/jobset.sh", *arguments, "--dry-run", *TRAIN)
    assert lines[0] == "kubectl apply -f - <<'END'" and lines[-1] == "END"
    return yaml.safe_load("\n".join(lines[1:-1]))


def slice_job(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    return job, job["template"]["spec"], job["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(("platform", "topology", "slices", "hosts", "accelerator"), SLICES)
def test_a_job_for_every_slice_and_a_pod_for_every_host(dry, platform, topology, slices, hosts, accelerator):
    jobset = manifest(dry, "--slices", slices, platform=platform, topology=topology)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    job, spec, pod = slice_job(jobset)
    assert job["replicas"] == slices
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == hosts
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    (container,) = pod["containers"]
    chips = {"google.com/tpu": 4}
    assert container["resources"] == {"requests": chips, "limits": chips}
    flags = ["bash", "launch/host.sh", platform, "--until-complete"]
    assert container["command"] == [*flags, *TRAIN]


def test_pods_find_one_another_and_a_slice_has_a_node_pool_to_itself(dry):
    jobset = manifest(dry)
    network = jobset["spec"]["network"]
    assert network["enableDNSHostnames"] and network["publishNotReadyAddresses"]
    assert network["subdomain"] == jobset["metadata"]["name"] == "nf"
    name = jobset["spec"]["replicatedJobs"][0]["name"]
    assert jobset["spec"]["coordinator"] == {"replicatedJob": name, "jobIndex": 0, "podIndex": 0}
    exclusive = jobset["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    assert exclusive == "cloud.google.com/gke-nodepool"


def test_pods_have_the_time_to_save(dry):
    assert slice_job(manifest(dry))[2]["terminationGracePeriodSeconds"] >= 600
    assert slice_job(manifest(dry, "--grace", "1200"))[2]["terminationGracePeriodSeconds"] == 1200


@pytest.mark.parametrize(
    ("status", "action"),
    [(1, "FailJobSet"), (2, "FailJobSet"), (3, "FailJobSet"), (75, "restart"), (137, "restart")],
)
def test_mistakes_end_the_job_and_failures_start_it_again(dry, status, action):
    jobset = manifest(dry)
    _, spec, _ = slice_job(jobset)
    exit_rule = spec["podFailurePolicy"]["rules"][1]
    matched = status in exit_rule["onExitCodes"]["values"]
    message = f"Container train for pod default/nf-slice-0-0-x failed with exit code {status} matching FailJob rule"
    rules = jobset["spec"]["failurePolicy"]["rules"]
    mistake = any(re.search(pattern, message) for pattern in rules[0]["onJobFailureMessagePatterns"])
    assert (rules[0]["action"] if matched and mistake else "restart") == action
    assert exit_rule["onExitCodes"]["containerName"] == slice_job(jobset)[2]["containers"][0]["name"]


def test_maintenance_and_preemption_start_it_again_without_counting(dry):
    jobset = manifest(dry, "--max-restarts", "7")
    _, spec, pod = slice_job(jobset)
    assert pod["restartPolicy"] == "Never" and spec["backoffLimit"] == 0
    disruption = spec["podFailurePolicy"]["rules"][0]
    assert disruption == {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget"}]}
    policy = jobset["spec"]["failurePolicy"]
    assert policy["rules"][1]["action"] == "RestartJobSetAndIgnoreMaxRestarts" and policy["maxRestarts"] == 7


def test_bucket_queue_and_account_are_asked_for(dry):
    jobset = manifest(dry, "--bucket", "b", "--queue", "q", "--service-account", "s")
    _, spec, pod = slice_job(jobset)
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"} and pod["serviceAccountName"] == "s"
    assert spec["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    (volume,), (mount,) = pod["volumes"], pod["containers"][0]["volumeMounts"]
    attributes = volume["csi"]["volumeAttributes"]
    # Without the second the driver refuses pods on the host's network.
    assert attributes["bucketName"] == "b" and pod["hostNetwork"] and attributes["hostNetworkPodKSA"] == "true"
    assert mount == {"name": volume["name"], "mountPath": "/bucket"}


def test_a_restart_finds_local_checkpoints_and_compiled_programs(dry):
    _, _, pod = slice_job(manifest(dry, "--local", "/mnt/disks/ssd0"))
    (volume,), (container,) = pod["volumes"], pod["containers"]
    assert volume["hostPath"] == {"path": "/mnt/disks/ssd0", "type": "DirectoryOrCreate"}
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/local"}]
    assert container["env"] == [{"name": "NEXTFLOW_JAX_CACHE", "value": "/local/compile_cache"}]


def test_all_pods_find_what_the_first_has_compiled(dry):
    _, _, pod = slice_job(manifest(dry, "--local", "/mnt/disks/ssd0", "--bucket", "b"))
    (container,) = pod["containers"]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/bucket", "/local"]
    assert [volume["name"] for volume in pod["volumes"]] == [mount["name"] for mount in container["volumeMounts"]]
    assert container["env"] == [{"name": "NEXTFLOW_JAX_CACHE", "value": "/bucket/compile_cache"}]


def test_a_secret_is_named_and_nothing_is_kept_unasked(dry):
    (container,) = slice_job(manifest(dry, "--secret", "wandb"))[2]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "wandb"}}]
    pod = slice_job(manifest(dry))[2]
    assert not {"env", "envFrom", "volumeMounts"} & set(pod["containers"][0]) and "volumes" not in pod


def test_a_node_pool_for_every_slice(dry):
    arguments = ["--platform", "v6e", "--topology", "16x16", "--slices", "2", "--cluster", "c", "--zone", "z", "--spot"]
    assert dry("gke/jobset.sh", "pools", *NAME, *arguments, "--dry-run") == [
        f"gcloud container node-pools create nf-{index} --cluster c --location z "
        "--machine-type ct6e-standard-4t --tpu-topology 16x16 --num-nodes 64 --spot"
        for index in range(2)
    ]


def test_the_other_actions(dry):
    assert dry("gke/jobset.sh", "delete", *NAME, "--dry-run") == ["kubectl delete jobset nf"]
    assert dry("gke/jobset.sh", "logs", *NAME, "--dry-run")[0].startswith("kubectl logs --follow --selector ")
    assert len(dry("gke/jobset.sh", "status", *NAME, "--dry-run")) == 2


def test_the_manifest_is_applied(launch, stand_in, calls, tmp_path):
    folder = stand_in("kubectl", f"cat >{tmp_path}/applied")
    options = ["--platform", "v5p", "--topology", "2x2x1", "--image", "IMAGE"]
    assert launch("gke/jobset.sh", "start", *NAME, *options, *TRAIN, stand_ins=folder).returncode == 0
    assert calls() == ["kubectl apply -f -"]
    assert slice_job(yaml.safe_load((tmp_path / "applied").read_text()))[1]["completions"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--platform", "v5p", "--topology", "4x4"], "v5p has 3 dimensions"),
        (["--platform", "v6e", "--topology", "1x1"], "must make whole hosts of 4 chips"),
        (["--platform", "v9", "--topology", "4x4"], "must be v5e, v5p, v6e or tpu7x"),
        (["--platform", "v6e", "--topology", "4x4", "--grace", "4000"], "GKE allows 1 to 3600"),
        (["--platform", "v6e", "--topology", "4x4", "--name", "A_b"], "must be lower-case"),
        (["--platform", "v6e", "--topology", "4x4", "--local", "ssd"], "must be a folder of the nodes"),
        (["--topology"], "--topology needs a value"),
    ],
)
def test_wrong_usage_is_refused(launch, options, said):
    done = launch("gke/jobset.sh", "start", *NAME, "--image", "IMAGE", *options, *TRAIN)
    assert done.returncode == 2 and said in done.stderr


def test_the_image_has_what_the_pods_call():
    text = (ROOT / "launch/gke/Dockerfile").read_text()
    assert "ARG EXTRAS=tpu,remote,hf\n" in text and "COPY . ." in text
    assert '--constraint launch/constraints.txt ".[$EXTRAS]"' in text


def test_the_image_has_no_data_environment_or_history():
    left_out = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv", "runs", "data"} <= set(left_out)
    # Patterns begin at the root: `data` is not nextflow_jax/data, `**/data` would be.
    assert "**/data" not in left_out
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    assert not [name for name in ignored if not {name, f"**/{name}"} & set(left_out)]
    assert not [
        name for name in left_out if name in ("nextflow_jax", "experiments", "launch", "setup.cfg", "README.md")
    ]

#!/usr/bin/env bash
# A job on TPU slices of a GKE cluster as one JobSet: a Job for every slice, a pod for every host of four chips.
#
#   bash launch/gke/jobset.sh ACTION --name NAME [OPTIONS] [-- COMMAND...]
#
#   pools    makes a node pool for every slice (gcloud)      logs     follows the first pod's output
#   start    applies the JobSet that runs COMMAND            status   of the JobSet and its pods
#   delete   deletes it: every pod gets SIGTERM and --grace seconds to save
#
#   --platform NAME        v5e, v5p, v6e or tpu7x
#   --topology AxB[xC]     of one slice, in chips, e.g. 4x4x8
#   --slices N             slices (default: 1); the configuration says --config.mesh.slice=N
#   --image IMAGE          made from launch/gke/Dockerfile
#   --bucket NAME          mounted in every pod as /bucket: --workdir and shards must be seen by all hosts
#   --local DIR            of every node, mounted as /local: --config.checkpoint.local=/local/checkpoints then outlives
#                          the pods; a disk of the node, e.g. /mnt/stateful_partition or /mnt/disks/ssd0 (local SSD)
#   --secret NAME          Kubernetes secret whose keys are variables of COMMAND, e.g. WANDB_API_KEY
#   --service-account NAME Kubernetes account that may use the bucket (default: default)
#   --queue NAME           Kueue's LocalQueue, where the cluster has one
#   --grace SECONDS        between SIGTERM and SIGKILL (default: 600); must cover a step and a checkpoint, at most 3600.
#                          Spot nodes get about 15 whatever it says: they lose the steps since the last checkpoint
#   --max-restarts N       of the whole JobSet after failures (default: 100); maintenance and preemption do not count
#   --cluster, --zone      of the node pools; --spot: they may be taken away
#   --dry-run              print the manifest and the commands
#
#   bash launch/gke/jobset.sh start --name pretrain --platform v5p --topology 8x8x8 --image IMAGE --bucket BUCKET -- \
#     python -m nextflow_jax.train --distributed --config experiments/nextflow/decoder.py:pretrain_256 \
#     --workdir /bucket/pretrain_256 --config.pipeline.shards=/bucket/shards_256
#
# The cluster needs the JobSet controller (https://jobset.sigs.k8s.io) and, for --bucket, the Cloud Storage FUSE driver
# of GKE 1.33.3-gke.1226000 or later, Standard mode: the first that serves pods on the host's network, as these are
# (https://github.com/GoogleCloudPlatform/gcs-fuse-csi-driver, docs/releases.md and docs/authentication.md).
# Compiled programs are kept in the bucket, else in --local: a JobSet that starts again does not compile again. In the
# bucket all pods find them; in --local only the first does, because only process 0 writes them.
# GKE tells every pod its place in the slice and the slices one another's addresses (TPU_WORKER_ID,
# TPU_WORKER_HOSTNAMES, MEGASCALE_*), which JAX reads; nothing secret is kept here. Never run on a cluster: tests read
# the manifest and check its structure.
set -euo pipefail
launch="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=launch/shared.sh
source "$launch/shared.sh"

chips_per_host=4
action="" name="" platform="" topology="" slices=1
image="" bucket="" local="" secret="" account=default queue="" grace=600 max_restarts=100
pool=() terms=()
while (($#)); do
  case "$1" in
    --name) take "$@"; name="$value"; shift ;;
    --platform) take "$@"; platform="$value"; shift ;;
    --topology) take "$@"; topology="$value"; shift ;;
    --slices) take "$@"; slices="$value"; shift ;;
    --image) take "$@"; image="$value"; shift ;;
    --bucket) take "$@"; bucket="$value"; shift ;;
    --local) take "$@"; local="$value"; shift ;;
    --secret) take "$@"; secret="$value"; shift ;;
    --service-account) take "$@"; account="$value"; shift ;;
    --queue) take "$@"; queue="$value"; shift ;;
    --grace) take "$@"; grace="$value"; shift ;;
    --max-restarts) take "$@"; max_restarts="$value"; shift ;;
    --cluster) take "$@"; pool+=(--cluster "$value"); shift ;;
    --zone) take "$@"; pool+=(--location "$value"); shift ;;
    --spot) terms+=(--spot) ;;
    --dry-run) dry_run=1 ;;
    -h | --help) show_help; exit 0 ;;
    --) shift; break ;;
    -*) usage "unknown option $1" ;;
    *) [[ -z "$action" ]] || usage "one action at a time; a command goes after --"; action="$1" ;;
  esac
  shift
done
command=("$@")
[[ -n "$action" ]] || usage "ACTION is missing"
[[ "$name" =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
  usage "--name '$name': must be lower-case letters, digits and -, at most 40"
for number in "$slices" "$grace" "$max_restarts"; do
  [[ "$number" =~ ^[0-9]+$ ]] || usage "$number is not a number"
done

# Labels and machines: https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
read_platform() {
  case "$platform" in
    v5e) accelerator=tpu-v5-lite-podslice machine=ct5lp-hightpu-4t dimensions=2 ;;
    v5p) accelerator=tpu-v5p-slice machine=ct5p-hightpu-4t dimensions=3 ;;
    v6e) accelerator=tpu-v6e-slice machine=ct6e-standard-4t dimensions=2 ;;
    tpu7x) accelerator=tpu7x machine=tpu7x-standard-4t dimensions=3 ;;
    "") usage "--platform is missing" ;;
    *) usage "--platform $platform: must be v5e, v5p, v6e or tpu7x" ;;
  esac
  [[ "$topology" =~ ^[0-9]+(x[0-9]+)+$ ]] || usage "--topology '$topology': must be like 4x4x8"
  local sizes
  IFS=x read -r -a sizes <<<"$topology"
  ((${#sizes[@]} == dimensions)) || usage "--topology $topology: $platform has $dimensions dimensions"
  chips=1
  for size in "${sizes[@]}"; do chips=$((chips * size)); done
  hosts=$((chips / chips_per_host))
  ((slices > 0 && hosts > 0 && chips % chips_per_host == 0)) ||
    usage "--topology $topology, --slices $slices: must make whole hosts of $chips_per_host chips"
}

# yaml_strings WORD...: a YAML list in one line, every word in double quotes.
yaml_strings() {
  local word text=""
  for word in "$@"; do
    word="${word//\\/\\\\}"
    text+=", \"${word//\"/\\\"}\""
  done
  printf '[%s]' "${text:2}"
}

manifest() {
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    # Every slice's Job gets a node pool to itself: the chips of a slice are joined by ICI only within one.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
END
  if [[ -n "$queue" ]]; then printf '  labels:\n    kueue.x-k8s.io/queue-name: %s\n' "$queue"; fi
  cat <<END
spec:
  # A headless service: pods find one another by name before they are ready.
  network:
    enableDNSHostnames: true
    publishNotReadyAddresses: true
    subdomain: $name
  coordinator:
    replicatedJob: slice
    jobIndex: 0
    podIndex: 0
  failurePolicy:
    maxRestarts: $max_restarts
    rules:
      # Status 1, 2, 3: bad input, usage, does not fit. Trying again would not help.
      - name: mistake
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
        onJobFailureMessagePatterns: ["exit code [123] "]
      # Maintenance or preemption: all start again from the checkpoint, however often.
      - name: interrupted
        action: RestartJobSetAndIgnoreMaxRestarts
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          completionMode: Indexed
          completions: $hosts
          parallelism: $hosts
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onPodConditions:
                  - type: DisruptionTarget
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [1, 2, 3]
          template:
END
  if [[ -n "$bucket" ]]; then
    printf '            metadata:\n              annotations:\n                gke-gcsfuse/volumes: "true"\n'
  fi
  cat <<END
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: $grace
              serviceAccountName: $account
              hostNetwork: true
              dnsPolicy: ClusterFirstWithHostNet
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $topology
              tolerations:
                - key: google.com/tpu
                  operator: Exists
                  effect: NoSchedule
              containers:
                - name: train
                  image: $image
                  command: $(yaml_strings bash launch/host.sh "$platform" --until-complete -- "${command[@]}")
END
  environment
  cat <<END
                  securityContext:
                    privileged: true
                  resources:
                    requests:
                      google.com/tpu: $chips_per_host
                    limits:
                      google.com/tpu: $chips_per_host
END
  volumes
}

# environment: of the container: where compiled programs are kept, and the secret's variables.
environment() {
  local cache=""
  if [[ -n "$local" ]]; then cache=/local/compile_cache; fi
  if [[ -n "$bucket" ]]; then cache=/bucket/compile_cache; fi
  if [[ -n "$cache" ]]; then
    cat <<END
                  env:
                    - name: NEXTFLOW_JAX_CACHE
                      value: $cache
END
  fi
  if [[ -n "$secret" ]]; then
    cat <<END
                  envFrom:
                    - secretRef:
                        name: $secret
END
  fi
}

# volumes: those of the container, then those of the pod.
volumes() {
  if [[ -z "$bucket$local" ]]; then return; fi
  echo "                  volumeMounts:"
  if [[ -n "$bucket" ]]; then
    cat <<END
                    - name: bucket
                      mountPath: /bucket
END
  fi
  if [[ -n "$local" ]]; then
    cat <<END
                    - name: local
                      mountPath: /local
END
  fi
  echo "              volumes:"
  if [[ -n "$bucket" ]]; then
    cat <<END
                - name: bucket
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: $bucket
                      mountOptions: implicit-dirs
                      # The pod's own account on the host's network, not the node's.
                      hostNetworkPodKSA: "true"
END
  fi
  if [[ -n "$local" ]]; then
    cat <<END
                - name: local
                  hostPath:
                    path: $local
                    type: DirectoryOrCreate
END
  fi
}

start() {
  read_platform
  ((${#command[@]})) || usage "COMMAND is missing; it goes after --"
  [[ -n "$image" ]] || usage "--image is missing"
  [[ "${local:-/}" == /* ]] || usage "--local $local: must be a folder of the nodes, from the root"
  ((grace > 0 && grace <= 3600)) || usage "--grace $grace: GKE allows 1 to 3600 seconds"
  run_with "$(manifest)" kubectl apply -f -
}

pools() {
  local index
  read_platform
  ((${#pool[@]} == 4)) || usage "--cluster or --zone is missing"
  for ((index = 0; index < slices; index++)); do
    run gcloud container node-pools create "$name-$index" "${pool[@]}" --machine-type "$machine" \
      --tpu-topology "$topology" --num-nodes "$hosts" ${terms[@]+"${terms[@]}"}
  done
}

jobset="jobset.sigs.k8s.io/jobset-name=$name"
case "$action" in
  start | pools) "$action" ;;
  logs)
    first="jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    run kubectl logs --follow --selector "$jobset,$first" --container train
    ;;
  status)
    run kubectl get jobset "$name"
    run kubectl get pods --selector "$jobset" --output wide
    ;;
  delete) run kubectl delete jobset "$name" ;;
  *) usage "unknown action $action" ;;
esac

#!/usr/bin/env bash
# A job on Cloud TPU VMs that queued resources give: one slice, or several joined by the data centre's network.
#
#   bash launch/tpu_pod.sh ACTION --name NAME --zone ZONE [OPTIONS] [-- COMMAND...]
#
#   create    asks for the slices              stop      lets the job save and end
#   wait      until they are there             restart   stop, then start
#   setup     copies this commit, installs     logs      follows what a host says (--worker N)
#   start     starts COMMAND on every host     status    state of the request; the job on every host
#   keep      create, wait, setup, start; again whenever the slices are lost (spot), until COMMAND has ended well
#   delete    gives the slices back                profile  makes a host's training write a profile (--worker N)
#
#   --type TYPE       accelerator type, e.g. v5p-512 (TensorCores), v6e-256 (chips)
#   --slices N        slices of that type; the configuration says --config.mesh.slice=N (default: 1 for `create` and
#                     `keep`; all other actions ask which there are)
#   --project NAME    (default: gcloud's)
#   --runtime NAME    software of the VMs (default: by the type)
#   --spot            may be taken away; --reserved: from your reservation
#   --bucket NAME     mounted on every host as ~/bucket: --workdir and shards must be seen by all hosts
#   --extras LIST     extras of setup.cfg to install (default: tpu,remote,hf), e.g. tpu,remote,hf,wandb
#   --wandb-secret S  of Secret Manager: COMMAND gets its latest version as WANDB_API_KEY
#   --worker N        the host whose log is followed, or which is profiled (default: 0)
#   --dry-run         print the commands
#
#   bash launch/tpu_pod.sh keep --name nextflow --zone us-east5-a --type v5p-512 --spot --bucket my-bucket -- \
#     .venv/bin/python -m nextflow_jax.train --distributed --config experiments/nextflow/decoder.py:pretrain_256 \
#     --workdir ../bucket/pretrain_256 --config.pipeline.shards=../bucket/shards_256
#
# COMMAND runs in the copied folder under nextflow_jax.supervise, which starts it again from the last checkpoint when it
# dies, and stops it when the host's metadata server announces maintenance or preemption (launch/README.md). With
# --bucket, compiled programs are kept in it: only process 0 writes them, and all hosts must find them. Every host finds the others through JAX (train --distributed). TPU7x has no queued resources: launch/gke.
# gcloud's own login is used; nothing secret is kept here. Never run on a pod: checked by its dry run.
set -euo pipefail
# shellcheck source=launch/shared.sh
source "$(dirname "${BASH_SOURCE[0]}")/shared.sh"

folder=nextflow_jax
launch="$(dirname "${BASH_SOURCE[0]}")"
# In a host's shell: "running", the exit status that launch/host.sh left, or "gone" (the machine was started anew).
# shellcheck disable=SC2016  # the host expands it
job_state='kill -0 $(cat job.pid 2>/dev/null) 2>/dev/null && echo running || cat logs/*.status 2>/dev/null || echo gone'
action="" name="" type="" slices="" runtime="" bucket="" extras=tpu,remote,hf secret="" worker=0
place=() terms=()
while (($#)); do
  case "$1" in
    --name) take "$@"; name="$value"; shift ;;
    --zone) take "$@"; place+=(--zone "$value"); shift ;;
    --project) take "$@"; place+=(--project "$value"); shift ;;
    --type) take "$@"; type="$value"; shift ;;
    --slices) take "$@"; slices="$value"; shift ;;
    --runtime) take "$@"; runtime="$value"; shift ;;
    --bucket) take "$@"; bucket="$value"; shift ;;
    --extras) take "$@"; extras="$value"; shift ;;
    --wandb-secret) take "$@"; secret="$value"; shift ;;
    --worker) take "$@"; worker="$value"; shift ;;
    --spot) terms+=(--spot) ;;
    --reserved) terms+=(--reserved) ;;
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
[[ -n "$name" ]] || usage "--name is missing"
[[ "${place[*]-}" == *--zone* ]] || usage "--zone is missing"
[[ "$slices" =~ ^([1-9][0-9]*)?$ ]] || usage "--slices $slices: must be a positive number"

# The platform (launch/flags.sh) and the VMs' software go with the type:
# https://cloud.google.com/tpu/docs/runtimes
read_type() {
  case "$type" in
    v5litepod-*) platform=v5e default_runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) platform=v5p default_runtime=v2-alpha-tpuv5 ;;
    v6e-*) platform=v6e default_runtime=v2-alpha-tpuv6e ;;
    "") usage "--type is missing" ;;
    *) usage "--type $type: must be v5litepod-N, v5p-N or v6e-N" ;;
  esac
}

need_command() {
  ((${#command[@]})) || usage "COMMAND is missing; it goes after --"
}

# find_nodes: their names, one a slice: as queued resources give them to so many slices, or else those of this request
# (https://docs.cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.nodes).
find_nodes() {
  local list
  list=(gcloud compute tpus tpu-vm list "${place[@]}" --filter "queuedResource ~ /$name\$" --format "value(name.basename())")
  if [[ "$slices" == 1 ]]; then
    nodes=("$name")
  elif [[ -n "$slices" ]]; then
    mapfile -t nodes < <(seq -f "$name-%.0f" 0 $((slices - 1)))
  elif ((dry_run)); then
    run "${list[@]}"
    nodes=("$name")
  else
    mapfile -t nodes < <("${list[@]}" | sort -V)
    ((${#nodes[@]})) || fail "found no slices of queued resource $name; say --slices N where there are some"
  fi
}

# on_hosts COMMAND: in a shell of every host of every slice.
on_hosts() {
  local node
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm ssh "$node" "${place[@]}" --worker=all --batch-size=all --command "$1" || return
  done
}

create() {
  local which=(--node-id "$name")
  read_type
  if ((${slices:-1} > 1)); then which=(--node-count "$slices" --node-prefix "$name"); fi
  run gcloud compute tpus queued-resources create "$name" "${place[@]}" --accelerator-type "$type" \
    --runtime-version "${runtime:-$default_runtime}" "${which[@]}" ${terms[@]+"${terms[@]}"}
}

state() {
  run gcloud compute tpus queued-resources describe "$name" "${place[@]}" --format 'value(state.state)'
}

wait_active() {
  local now
  if ((dry_run)); then
    state
    return
  fi
  until now="$(state)" && [[ "$now" == ACTIVE ]]; do
    case "$now" in FAILED | SUSPENDED | SUSPENDING) fail "queued resource $name is $now" ;; esac
    say "$name: ${now:-unknown}"
    sleep 30
  done
}

setup() {
  local archive node install
  archive="/tmp/$name.tar.gz"
  # Ubuntu 22.04 of the VMs comes with Python 3.10.
  install="sudo apt-get update -q && sudo apt-get install -qy python3.11-venv"
  install+=" && mkdir -p $folder && tar -xzf $name.tar.gz -C $folder && cd $folder"
  install+=" && EXTRAS=$(quoted "$extras") bash launch/setup.sh"
  if [[ -n "$bucket" ]]; then
    install+=" && mkdir -p ~/bucket && (mountpoint -q ~/bucket || gcsfuse --implicit-dirs $(quoted "$bucket") ~/bucket)"
  fi
  run git -C "$launch/.." archive --format=tar.gz --output "$archive" HEAD || return
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm scp "$archive" "$node:" "${place[@]}" --worker=all --batch-size=all || return
  done
  on_hosts "$install"
}

start() {
  local job variables=""
  job="$(quoted bash launch/host.sh "$platform" --log logs --until-complete -- \
    .venv/bin/python -m nextflow_jax.supervise --maintenance gce -- "${command[@]}")"
  if [[ -n "$bucket" ]]; then variables="export NEXTFLOW_JAX_CACHE=~/bucket/compile_cache; "; fi
  # The host fetches it itself: it stands in no file and in no command line.
  if [[ -n "$secret" ]]; then
    variables+="WANDB_API_KEY=\"\$(gcloud secrets versions access latest --secret=$(quoted "$secret"))\" || exit 1; "
    variables+="export WANDB_API_KEY; "
  fi
  # The session of its own survives the end of ssh; `status` and `stop` find it by its number. Hosts whose part of the
  # job lives, waiting for the others, keep it.
  on_hosts "cd $folder && if kill -0 \$(cat job.pid 2>/dev/null) 2>/dev/null; then echo running; \
else ${variables}setsid nohup $job >/dev/null 2>&1 </dev/null & echo \$! >job.pid; fi"
}

stop() {
  # The first host that is told makes all of them save and end: the others may be gone by then.
  on_hosts "cd $folder && { kill -TERM \$(cat job.pid 2>/dev/null) 2>/dev/null || true; } && \
while kill -0 \$(cat job.pid 2>/dev/null) 2>/dev/null; do sleep 1; done"
}

status() {
  state
  on_hosts "cd $folder && { $job_state; }; tail -n 1 logs/*.log"
}

# on_worker COMMAND: in a shell of host --worker of the first slice.
on_worker() {
  run gcloud compute tpus tpu-vm ssh "${nodes[0]}" "${place[@]}" --worker="$worker" --command "$1"
}

logs() {
  on_worker "tail -n 100 -F $folder/logs/*.log"
}

profile() {
  on_worker "kill -USR1 \$(cat $folder/job.pid)"
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
}

# job_status: one word for the hosts' `job_state`s, nothing when none answers: the failure of one is the job's; else
# "again" when the part of one must be started, "running" when all run, 0 when all have ended well. The first host alone
# would not do: another one may have come back from maintenance, with nothing running on it.
job_status() {
  local states failed
  states="$({ on_hosts "cd $folder && { $job_state; }" || true; } | grep -xE 'running|gone|[0-9]+' | sort -u)" || true
  failed="$(grep -vxE 'running|gone|0|75' <<<"$states" | head -n 1)" || true
  if [[ -n "$failed" ]]; then
    echo "$failed"
  elif grep -qxE '75|gone' <<<"$states"; then
    echo again
  else
    # "running" sorts after 0.
    tail -n 1 <<<"$states"
  fi
}

# ask: for the slices, unless they are asked for already; a request whose slices are lost is given back first.
ask() {
  local now
  now="$(state 2>/dev/null)" || now=""
  case "$now" in
    FAILED | SUSPENDED | SUSPENDING) delete ;&
    "") create ;;
  esac
}

keep() {
  need_command
  read_type
  if ((dry_run)); then
    create
    wait_active
    setup
    start
    return
  fi
  while true; do
    ask
    wait_active
    # A job that was left running, by a `keep` that was stopped, goes on.
    if [[ "$(job_status)" != running ]]; then
      setup
      start
    fi
    while [[ "$(state)" == ACTIVE ]]; do
      sleep 60
      case "$(job_status)" in
        running | "") ;;
        0) say "done. The slices are still rented; give them back with: bash launch/tpu_pod.sh delete"; return ;;
        again)
          say "stopped before the last step; starting it again"
          # A host that maintenance has taken comes back later.
          { setup && start; } || say "not all hosts answer; trying again"
          ;;
        *) fail "the job has failed; see: bash launch/tpu_pod.sh logs. The slices are still rented" ;;
      esac
    done
    say "$name was taken away; asking again"
  done
}

case "$action" in
  create | delete) "$action" ;;
  wait) wait_active ;;
  keep)
    slices="${slices:-1}"
    find_nodes
    keep
    ;;
  setup | stop | status | logs | profile)
    find_nodes
    "$action"
    ;;
  start | restart)
    need_command
    read_type
    find_nodes
    if [[ "$action" == restart ]]; then stop; fi
    start
    ;;
  *) usage "unknown action $action" ;;
esac

#!/usr/bin/env bash
# A job on the GPUs of a SLURM cluster: one task a GPU, saved before the time is over, and put back into the queue.
#
#   bash launch/slurm/submit.sh --nodes N --gpus M --log DIR [OPTIONS] [-- SBATCH_OPTIONS...] --run COMMAND...
#
#   --nodes N          (default: 1)
#   --gpus M           of each node (default: 8)
#   --task WHAT        gpu (default): a process a GPU; node: a process a node with all its GPUs
#   --time LIMIT       of one turn in the queue (default: 24:00:00); the job comes back until it is complete
#   --save SECONDS     before the limit the job is told to save (default: 600): must cover a step and a checkpoint
#   --name NAME        (default: nextflow)
#   --log DIR          every process writes DIR/process-N.log, the job DIR/job-ID.log
#   --max-restarts N   turns after failures (default: 100)
#   --dry-run          print the sbatch command
#
#   bash launch/slurm/submit.sh --nodes 8 --gpus 8 --log runs/pretrain/logs -- --partition=h100 --account=ours --run \
#     .venv/bin/python -m nextflow_jax.train --distributed --config experiments/nextflow/decoder.py:pretrain_256 \
#     --workdir runs/pretrain --config.pipeline.shards=data/shards_256
#
# What the job does on its nodes is launch/slurm/job.sh. Run it from this repository on a file system that all nodes
# see, with .venv installed as EXTRAS=cuda,remote,hf bash launch/setup.sh. Never run on a cluster: checked by its dry
# run, and job.sh with a stand-in for srun.
set -euo pipefail
launch="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=launch/shared.sh
source "$launch/shared.sh"

nodes=1 gpus=8 task=gpu limit=24:00:00 save=600 name=nextflow log="" max_restarts=100
options=()
while (($#)); do
  case "$1" in
    --nodes) take "$@"; nodes="$value"; shift ;;
    --gpus) take "$@"; gpus="$value"; shift ;;
    --task) take "$@"; task="$value"; shift ;;
    --time) take "$@"; limit="$value"; shift ;;
    --save) take "$@"; save="$value"; shift ;;
    --name) take "$@"; name="$value"; shift ;;
    --log) take "$@"; log="$value"; shift ;;
    --max-restarts) take "$@"; max_restarts="$value"; shift ;;
    --dry-run) dry_run=1 ;;
    -h | --help) show_help; exit 0 ;;
    --)
      shift
      while (($#)) && [[ "$1" != --run ]]; do
        options+=("$1")
        shift
      done
      continue
      ;;
    --run) shift; break ;;
    *) usage "unknown argument $1" ;;
  esac
  shift
done
(($#)) || usage "COMMAND is missing; it goes after --run"
[[ -n "$log" ]] || usage "--log is missing"
for number in "$nodes" "$gpus" "$save" "$max_restarts"; do
  [[ "$number" =~ ^[1-9][0-9]*$ ]] || usage "$number is not a positive number"
done
case "$task" in
  gpu) tasks="$gpus" ;;
  node) tasks=1 ;;
  *) usage "--task $task: must be gpu or node" ;;
esac

run mkdir -p "$log"
# B: the batch script alone is told, and passes it on; --requeue and append: a job that comes back is the same job.
run sbatch --job-name "$name" --nodes "$nodes" --ntasks-per-node "$tasks" --gpus-per-node "$gpus" --exclusive \
  --time "$limit" --signal "B:TERM@$save" --requeue --open-mode append --output "$log/job-%j.log" \
  ${options[@]+"${options[@]}"} "$launch/slurm/job.sh" "$launch" "$log" "$max_restarts" "$@"

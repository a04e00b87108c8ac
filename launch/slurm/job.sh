#!/usr/bin/env bash
# The batch script of launch/slurm/submit.sh: runs the command on all nodes, and comes back until it is complete.
#
#   job.sh LAUNCH_FOLDER LOG_FOLDER MAX_RESTARTS COMMAND...          (sbatch calls it)
#
# SIGTERM (the time limit nears, or the job is preempted) goes on to every process; they save and end, and the job is
# put back into the queue, where the same command continues. After a failure it comes back too, at most MAX_RESTARTS
# times; not after a mistake (status 1, 2, 3). JAX finds the other processes by SLURM's variables.
set -euo pipefail
launch="$1" log="$2" max_restarts="$3"
shift 3
# SLURM copies this script away from its folder, so it is told where the others are.
# shellcheck source=launch/shared.sh
source "$launch/shared.sh"

# JAX gives a task of SLURM the one device with its number on the node: right for a task a GPU, and named here where a
# task has all GPUs of its node.
if [[ "${SLURM_NTASKS_PER_NODE:-1}" == 1 ]]; then
  JAX_LOCAL_DEVICE_IDS="$(seq -s, 0 $((${SLURM_GPUS_ON_NODE:-1} - 1)))"
  export JAX_LOCAL_DEVICE_IDS
fi

# --kill-on-bad-exit: when one process dies, the others are stopped. scancel signals the tasks, not this script.
signalled=0
trap 'signalled=1; scancel --signal TERM "$SLURM_JOB_ID" || true' TERM
srun --kill-on-bad-exit=1 bash "$launch/host.sh" gpu --log "$log" -- "$@" &
child=$!
status=0
wait_through "$child" || status=$?

restarts="${SLURM_RESTART_COUNT:-0}"
if ((status == 0)) && is_complete "$(workdir_of "$@")"; then
  say "complete"
elif ((status == 0)); then
  say "stopped before the last step: back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
elif ((status > 3 && restarts < max_restarts)); then
  say "failed with status $status: back into the queue ($((restarts + 1)) of $max_restarts)"
  scontrol requeue "$SLURM_JOB_ID"
else
  say "failed with status $status"
fi
exit "$status"

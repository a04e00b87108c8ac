#!/usr/bin/env bash
# A job of several processes on this machine, with simulated devices: what a pod does, before there is a pod.
#
#   bash launch/local.sh --processes 4 --devices 2 --log runs/decoder/logs -- \
#     .venv/bin/python -m nextflow_jax.train --distributed --config experiments/openmoji/quickstart.py:decoder,smoke \
#     --workdir runs/decoder --config.pipeline.shards=runs/quickstart_smoke/shards
#
#   --processes N      processes of the job (default: 2)
#   --devices M        simulated devices of each (default: 4); 0 leaves the machine's own devices to the processes
#   --platform NAME    whose flags they get, of launch/flags.sh (default: cpu)
#   --log DIR          every process appends what it says to DIR/process-N.log as well
#   --max-restarts N   in a row, when a process dies and all start again from the last checkpoint (default: 10)
#   --dry-run          print the command
#
# When one process dies the others are stopped, and all start again (python -m nextflow_jax.supervise); SIGTERM and
# Ctrl-C are passed on, so that the job saves and ends.
set -euo pipefail
# shellcheck source=launch/shared.sh
source "$(dirname "${BASH_SOURCE[0]}")/shared.sh"

processes=2 devices=4 platform=cpu log=() max_restarts=10
while (($#)); do
  case "$1" in
    --processes) take "$@"; processes="$value"; shift ;;
    --devices) take "$@"; devices="$value"; shift ;;
    --platform) take "$@"; platform="$value"; shift ;;
    --log) take "$@"; log=(--log "$value"); shift ;;
    --max-restarts) take "$@"; max_restarts="$value"; shift ;;
    --dry-run) dry_run=1 ;;
    -h | --help) show_help; exit 0 ;;
    --) shift; break ;;
    *) usage "unknown argument $1" ;;
  esac
  shift
done
(($#)) || usage "COMMAND is missing; it goes after --"
for number in "$processes" "$devices" "$max_restarts"; do
  [[ "$number" =~ ^[0-9]+$ ]] || usage "$number is not a number"
done

launch="$(dirname "${BASH_SOURCE[0]}")"
python="$launch/../.venv/bin/python"
[[ -x "$python" ]] || python=python3
run exec "$python" -m nextflow_jax.supervise --processes "$processes" --devices "$devices" \
  --max_restarts "$max_restarts" -- bash "$launch/host.sh" "$platform" ${log[@]+"${log[@]}"} -- "$@"

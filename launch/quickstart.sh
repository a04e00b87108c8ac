#!/usr/bin/env bash
# The main job on OpenMoji, from nothing to a trained, exported, sampled and reported model: sets up .venv, trains a
# dual encoder (the teacher), the vision tokenizer and the decoder, exports the bundle, evaluates it, and writes
# RUN_DIR/report/index.html. About 16 minutes on two CPU cores; an accelerator is used when JAX finds one.
#
#   bash launch/quickstart.sh                 # into runs/quickstart
#   bash launch/quickstart.sh RUN_DIR         # into a folder of your choice
#   bash launch/quickstart.sh --smoke         # every stage with toy settings into runs/quickstart_smoke, in minutes
#
# Interrupted (Ctrl-C, SIGTERM, a lost machine), the same command continues where it stopped.
set -euo pipefail

smoke=""
run_dir=""
for argument in "$@"; do
  case "$argument" in
    --smoke) smoke=",smoke" ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    -*) echo "usage: bash launch/quickstart.sh [--smoke] [RUN_DIR]" >&2; exit 2 ;;
    *) run_dir="$(mkdir -p "$argument" && cd "$argument" && pwd)" ;;
  esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
run_dir="${run_dir:-runs/quickstart${smoke:+_smoke}}"
experiment=experiments/openmoji/quickstart.py
seconds_dir="$run_dir/seconds"
mkdir -p "$seconds_dir"

# Job control puts every stage in a process group of its own, so that a signal reaches all that the stage started.
set -m
child=""
stopped_by=""
stop() {
  stopped_by="$1"
  if [[ -n "$child" ]]; then kill -TERM -- "-$child" 2>/dev/null || true; fi
}
for signal in HUP INT TERM; do
  # shellcheck disable=SC2064  # the name is meant to be expanded now
  trap "stop $signal" "$signal"
done

# stage NAME COMMAND...: runs the command and adds its wall-clock seconds to RUN_DIR/seconds/NAME. It skips nothing:
# every command continues its own work, or says that it is complete.
stage() {
  local name="$1" before status=0 started=$SECONDS
  shift
  before="$(cat "$seconds_dir/$name" 2>/dev/null || echo 0)"
  echo "== $name"
  "$@" </dev/null &
  child=$!
  wait "$child" || status=$?
  # A trapped signal ends `wait` early: wait again for the stage to save and end.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child" || status=$?
  done
  child=""
  echo $((before + SECONDS - started)) >"$seconds_dir/$name"
  if [[ -n "$stopped_by" ]]; then
    echo "stopped in stage $name; run the same command again to continue" >&2
    exit $((128 + $(kill -l "$stopped_by")))
  fi
  if ((status != 0)); then
    echo "stage $name failed (status $status); run the same command again once the cause is gone" >&2
    exit "$status"
  fi
}

# train NAME OPTIONS...: a stage that trains into RUN_DIR/NAME. Training that is told to stop saves and ends well, so a
# good end is not the end of the work: that is the checkpoint of the last step.
train() {
  local name="$1" steps
  shift
  stage "$name" "$python" -m nextflow_jax.train --config "$experiment:$name$smoke" "$@" --workdir "$run_dir/$name"
  steps="$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["train"]["steps"])' \
    "$run_dir/$name/config.json")"
  if [[ ! -d "$run_dir/$name/checkpoints/$steps" ]]; then
    echo "stopped in stage $name; run the same command again to continue" >&2
    exit 143
  fi
}

python=.venv/bin/python
teacher="--config.teacher=$run_dir/contrastive"
shards="--config.pipeline.shards=$run_dir/shards"

stage install bash launch/setup.sh
train contrastive
train tokenizer "$teacher"
stage extract "$python" -m nextflow_jax.extract --config "$experiment:decoder$smoke" "$shards" \
  --tokenizer "$run_dir/tokenizer" --out "$run_dir/shards"
train decoder "$shards"
stage export "$python" -m nextflow_jax.export --workdir "$run_dir/decoder" --out "$run_dir/bundle"
stage evaluate "$python" -m nextflow_jax.evaluate --bundle "$run_dir/bundle" \
  --config "$experiment:decoder$smoke" "$shards" --out "$run_dir"
stage report "$python" -m nextflow_jax.report "$run_dir"

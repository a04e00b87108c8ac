#!/usr/bin/env bash
# What the launchers share (sourced): commands that --dry-run prints instead, errors, and whether training is complete.
# A command is printed as it would be typed, quoted for the shell; a dry run prints nothing else to stdout.
set -euo pipefail

dry_run=0

# run COMMAND...: runs it, or prints it.
run() {
  if ((dry_run)); then printf '%s\n' "$(quoted "$@")"; else "$@"; fi
}

# run_with FILE_CONTENT COMMAND...: the same, with the text on stdin.
run_with() {
  local text="$1"
  shift
  if ((dry_run)); then
    printf "%s <<'END'\n%s\nEND\n" "$(quoted "$@")" "$text"
  else
    "$@" <<<"$text"
  fi
}

# assign NAME VALUE: exports the variable, or prints that.
assign() {
  if ((dry_run)); then printf 'export %s=%s\n' "$1" "$(quoted "$2")"; else export "$1=$2"; fi
}

# quoted WORD...: as it would be typed; words that need no quotes get none.
quoted() {
  local word text=""
  for word in "$@"; do
    if [[ "$word" =~ ^[A-Za-z0-9_@%+=:,./~-]+$ ]]; then text+=" $word"; else text+=" '${word//\'/\'\\\'\'}'"; fi
  done
  printf '%s' "${text:1}"
}

say() {
  echo "$*" >&2
}

fail() {
  say "error: $*"
  exit 1
}

# show_help: the comment at the top of the script.
show_help() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
}

usage() {
  say "error: $*"
  say "usage: bash $0 --help"
  exit 2
}

# take OPTION [VALUE] ...: sets `value` to the VALUE that goes with OPTION; wrong usage when there is none.
take() {
  [[ -n "${2:-}" && "$2" != --* ]] || usage "$1 needs a value"
  # shellcheck disable=SC2034  # the caller reads it
  value="$2"
}

# wait_through CHILD: its status, whatever signals are trapped meanwhile; their handlers set `signalled`.
wait_through() {
  local status
  while true; do
    status=0 signalled=0
    # A trapped signal ends `wait` early; the child got it too, and is waited for again while it saves.
    wait "$1" || status=$?
    ((signalled)) || return "$status"
  done
}

# workdir_of COMMAND...: its --workdir, empty when it has none.
workdir_of() {
  while (($#)); do
    case "$1" in
      --workdir) echo "${2:-}"; return ;;
      --workdir=*) echo "${1#--workdir=}"; return ;;
    esac
    shift
  done
}

# is_complete WORKDIR: whether it has a checkpoint of its last step; a command without a workdir is done when it ends.
is_complete() {
  [[ -n "$1" ]] || return 0
  [[ -f "$1/config.json" ]] || return 1
  local steps
  steps="$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["train"]["steps"])' "$1/config.json")"
  [[ -d "$1/checkpoints/$steps" ]]
}

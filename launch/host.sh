#!/usr/bin/env bash
# One process of a job on its host: sets the flags of the platform (launch/flags.sh), keeps a log, runs the command.
# The other launchers call it on every host; it can be called by hand, too.
#
#   bash launch/host.sh PLATFORM [--log DIR] [--until-complete] [--dry-run] -- COMMAND...
#
#   PLATFORM           v5e, v5p, v6e, tpu7x, gpu or cpu
#   --log DIR          what the process says is shown, and appended to DIR/process-N.log, N its number in the job (or
#                      DIR/HOST.log where the launcher gives none)
#   --until-complete   training that was told to stop saves and ends with 0; with this flag the status is then 75, by
#                      which a scheduler knows that the work is not done: there is no checkpoint of the last step in the
#                      command's --workdir. The status also goes to the log's name with .status
#   --dry-run          print what would be done
#
# SIGTERM, Ctrl-C and SIGUSR1 (a profile of training, please) go on to the command.
# A variable of flags that is set already is kept: ours go before it, and of one flag given twice the last counts.
set -euo pipefail
# shellcheck source=launch/shared.sh
source "$(dirname "${BASH_SOURCE[0]}")/shared.sh"

platform="" log="" until_complete=0
while (($#)); do
  case "$1" in
    --log) take "$@"; log="$value"; shift ;;
    --until-complete) until_complete=1 ;;
    --dry-run) dry_run=1 ;;
    -h | --help) show_help; exit 0 ;;
    --) shift; break ;;
    -*) usage "unknown option $1" ;;
    *) [[ -z "$platform" ]] || usage "a command goes after --"; platform="$1" ;;
  esac
  shift
done
[[ -n "$platform" ]] || usage "PLATFORM is missing"
(($#)) || usage "COMMAND is missing; it goes after --"

flags="$(bash "$(dirname "${BASH_SOURCE[0]}")/flags.sh" "$platform")"
while IFS='=' read -r variable ours; do
  case "$variable" in
    "") ;;
    LIBTPU_INIT_ARGS | XLA_FLAGS) assign "$variable" "$ours${!variable:+ ${!variable}}" ;;
    *) assign "$variable" "${!variable-$ours}" ;;
  esac
done <<<"$flags"

file=""
if [[ -n "$log" ]]; then
  number="${JAX_PROCESS_ID:-${SLURM_PROCID:-}}"
  file="$log/${number:+process-}${number:-$(hostname)}.log"
  run mkdir -p "$log"
  if ((!dry_run)); then
    rm -f "$file.status"
    exec > >(exec tee -a "$file") 2>&1
  fi
fi
if ((dry_run)); then
  run "$@"
  exit
fi
# SIGUSR1 asks for a profile. It is nothing to a command that does not listen to it, or not yet: what is ignored stays
# ignored in the programs that a process becomes.
if ((!until_complete)); then
  trap '' USR1
  exec "$@"
fi

child="" asked=0 signalled=0
tell() {
  signalled=1
  if [[ -n "$child" ]]; then kill "-$1" "$child" 2>/dev/null || true; fi
}
trap 'asked=1; tell TERM' TERM INT
trap 'tell USR1' USR1
(
  trap '' USR1
  exec "$@"
) &
child=$!
if ((asked)); then tell TERM; fi
status=0
wait_through "$child" || status=$?
if ((status == 0)) && ! is_complete "$(workdir_of "$@")"; then
  say "stopped before the last step; the same command continues"
  status=75
elif ((asked && status > 3)); then
  say "told to stop, and ended with status $status before it had saved; the same command continues"
  status=75
fi
if [[ -n "$file" ]]; then echo "$status" >"$file.status"; fi
exit "$status"

#!/usr/bin/env bash
# Makes .venv with everything the other launch scripts need. Safe to rerun: it installs only when there is no
# environment yet, or when setup.cfg, pyproject.toml or launch/constraints.txt have changed since.
#
#   bash launch/setup.sh
#   PYTHON=/opt/python3.12/bin/python3 bash launch/setup.sh     # with an interpreter of your choice
#   EXTRAS=tpu,remote bash launch/setup.sh                      # with other extras of setup.cfg: on hosts of a cluster
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $*" >&2
  exit 1
}

is_supported() {
  "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null
}

find_python() {
  local candidate
  if [[ -n "${PYTHON:-}" ]]; then
    is_supported "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.11 or 3.12; set PYTHON to one of these, or unset it"
    echo "$PYTHON"
    return
  fi
  for candidate in python3.12 python3.11 python3 python; do
    if is_supported "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  fail "found no Python 3.11 or 3.12; install one, or set PYTHON to its path"
}

# venv finishes a half-made environment, so an interrupted first run needs no cleaning up.
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  python="$(find_python)"
  echo "setup: making .venv with $("$python" --version) ($python)"
  "$python" -m venv .venv || fail "$python -m venv failed; on Debian or Ubuntu install the python3-venv package"
fi
is_supported .venv/bin/python || fail ".venv has $(.venv/bin/python --version), not 3.11 or 3.12; remove .venv and rerun"

extras="${EXTRAS:-openmoji,photographs,eval,dev}"
stamp=.venv/nextflow_jax.stamp
wanted="$extras $(cat setup.cfg pyproject.toml launch/constraints.txt | cksum)"
if [[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]]; then
  echo "setup: installing nextflow_jax[$extras] (a few minutes the first time)"
  .venv/bin/python -m pip install --quiet --no-input --disable-pip-version-check --retries 5 \
    --constraint launch/constraints.txt --editable ".[$extras]" </dev/null \
    || fail "pip could not install the packages (its message is above); check the network and rerun"
  echo "$wanted" >"$stamp"
fi

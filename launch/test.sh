#!/usr/bin/env bash
# Lints, then runs the test suite with branch coverage of nextflow_jax. Arguments go to pytest.
#
#   bash launch/test.sh
#   bash launch/test.sh tests/data -k shards
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup.sh
.venv/bin/ruff check
exec .venv/bin/python -m pytest --cov --cov-report=term "$@"

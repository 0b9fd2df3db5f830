#!/usr/bin/env bash
# Installs what the tests need into .venv, then lint, types, tests; last, all cases of those that try a sample of many.
# Arguments go to pytest, once: bash tools/test.sh -m "not tf"
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# A file's tests stay together: they share what takes long to make. In the order of conftest.py, the long ones first: by number of
# tests, they came last, beside idle processes. More processes than 4, each with its TensorFlow, take more memory than a laptop has.
run_tests() {
    .venv/bin/python -m pytest -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder "$@"
}
run_tests "$@"
if [ $# -eq 0 ]; then
    run_tests -m exhaustive
fi

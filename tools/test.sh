#!/usr/bin/env bash
# Installs what the tests need into .venv, then lint, types, tests. Arguments go to pytest: bash tools/test.sh -m "not tf"
# Before a release, and after changes to what they test, all cases and the longest tests: bash tools/test.sh -m exhaustive
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# A file's tests stay together: they share what takes long to make. In the order of conftest.py, the long ones first: by number of
# tests, they came last, beside idle processes. More processes than 4, each with its TensorFlow, take more memory than a laptop has.
# A process that crashes fails the tests at once: replaced by another one, it could leave pytest waiting for ever.
.venv/bin/python -m pytest -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder --max-worker-restart=0 "$@"

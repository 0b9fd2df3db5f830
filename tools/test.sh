#!/usr/bin/env bash
# Installs what the tests need into .venv, then lint, types, tests. Arguments go to pytest: bash tools/test.sh -m "not tf"
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest "$@"

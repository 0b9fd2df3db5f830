#!/usr/bin/env bash
# From pictures to verified TFRecords, read back exactly once. Everything it makes is in demo_output/.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" demo
.venv/bin/python tools/demo.py "$@"

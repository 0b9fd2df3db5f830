#!/usr/bin/env bash
# From images to a trained and evaluated classifier. Everything it makes is in demo_output/.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" ""
.venv/bin/python tools/demo.py "$@"

# Sourced by demo.sh and test.sh: makes .venv where there is none, and installs the checkout with the extra named by $1.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ ! -x .venv/bin/python ]; then
    python=$(command -v python3.11 || command -v python3 || command -v python)
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (found $("$python" -V))" >&2; exit 1; }
    echo "Making .venv with $("$python" -V)"
    "$python" -m venv .venv
fi
echo "Installing tfpipe[$1] into .venv (TensorFlow is large: the first time takes a few minutes)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$1]"
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"

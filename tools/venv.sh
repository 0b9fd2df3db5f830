# Sourced by demo.sh and test.sh: makes .venv where there is none, and installs the checkout, with the extra named by $1 if there is one.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # none, or one whose making was interrupted
    python=$(command -v python3.11 || command -v python3 || command -v python || true)
    if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "Python 3.11 or newer is needed (found: ${python:-none} $("${python:-true}" -V 2>&1))" >&2
        exit 1
    fi
    echo "Making .venv with $("$python" -V)"
    "$python" -m venv --clear .venv
fi
extra=${1:+[$1]}
echo "Installing tfpipe$extra into .venv (TensorFlow is large: the first time takes a few minutes)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$extra"

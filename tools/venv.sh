# Sourced by demo.sh and test.sh: makes .venv where there is none, and installs the checkout, with the extra named by $1 if there is one.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # none, or one whose making was interrupted
    python=$(command -v python3.11 || command -v python3 || command -v python || true)
    if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "Python 3.11 or newer is needed (found: ${python:-none}${python:+, $("$python" -V 2>&1)}): install it, or put it first in PATH" >&2
        exit 1
    fi
    echo "Making .venv with $("$python" -V)"
    "$python" -m venv --clear .venv
fi
extra=${1:+[$1]}
wanted="$PWD $(cat setup.cfg pyproject.toml tfpipe/__init__.py | cksum)" # what decides about an installation
if [ "$(cat ".venv/installed$extra" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing tfpipe$extra into .venv (TensorFlow is large: the first time takes a few minutes)"
    if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$extra"; then
        echo "pip could not install tfpipe$extra, for the reason above. It needs the network and 3 GB of disk; run this again to go on" >&2
        exit 1
    fi
    echo "$wanted" >".venv/installed$extra"
fi

"""That each mutation still applies: whoever rewrites what one breaks writes it anew. See `run.py`."""

import subprocess
import sys
from pathlib import Path


def test_each_mutation_applies():
    words = [sys.executable, Path(__file__).with_name("run.py"), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "64 mutations apply\n"), done.stderr

"""Progress: a bar that fits its terminal, lines in a log, and lines that are seen where nobody has configured logging."""

import contextlib
import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
import types
import unicodedata

import numpy as np
import pytest
from conftest import CHECKOUT

from tfpipe.common import progress
from tfpipe.common.progress import ProgressBar

DONE = {"val_loss": 0.70012, "val_accuracy": 0.91234, "best": "so far"}


def test_progress_in_a_log_is_a_line_now_and_then(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "tfpipe")
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with ProgressBar("head 1/3", 40, unit="steps", initial=10) as bar:
        for _ in range(30):
            clock[0] += 1.0
            bar.add(1, loss=np.float32(0.25), accuracy=0.5)
        bar.finish(**DONE)
    assert caplog.messages == [
        "head 1/3: 21 of 40 steps, 11 s, 19 s left, loss 0.25, accuracy 0.5",
        "head 1/3: 32 of 40 steps, 22 s, 8 s left, loss 0.25, accuracy 0.5",
        "head 1/3: 40 of 40 steps, 30 s, loss 0.25, accuracy 0.5, val_loss 0.7001, val_accuracy 0.9123, best so far",
    ]


def test_progress_without_steps_or_disabled_or_broken_off(caplog):
    caplog.set_level(logging.INFO, "tfpipe")
    with ProgressBar("quiet", 2, enabled=False) as bar:
        bar.add(2)
        bar.finish(**DONE)
    with pytest.raises(KeyboardInterrupt), ProgressBar("broken off", 2):
        raise KeyboardInterrupt
    assert caplog.messages == []
    with ProgressBar("empty", 0):
        pass
    assert caplog.messages == ["empty: 0 of 0 records, 0 s"]


def test_bytes_are_counted_where_there_are_any(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "tfpipe")
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with ProgressBar("write", 2) as bar:
        clock[0] = 2.0
        bar.add(2, 3_000_000)
    assert caplog.messages == ["write: 2 of 2 records, 1.5 MB/s, 2 s"]


@contextlib.contextmanager
def terminal(monkeypatch, columns):
    """Makes stderr a terminal of so many columns (0: one that does not know); yields what is written to it, once it is over."""
    main, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    shown = io.BytesIO()

    def read():
        with open(main, "rb", buffering=0) as opened:
            try:
                while data := opened.read(1000):
                    shown.write(data)
            except OSError:  # Linux's way of saying that the other end is closed
                pass

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(end, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        yield shown
    reader.join()


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    with terminal(monkeypatch, 0) as shown, ProgressBar("head 1/3", 30, unit="steps", initial=10) as bar:
        for _ in range(20):
            time.sleep(0.02)
            bar.add(1, loss=0.123456, accuracy=0.5)
    text = shown.getvalue().decode()
    assert "30/30" in text
    assert "loss 0.1235, accuracy 0.5" in text
    assert "<00:00" in text


def lines_of(shown):
    """What stands on each line, at any time, without what moves the cursor."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", shown.getvalue().decode()))


def width(text):
    return sum(2 if unicodedata.east_asian_width(letter) in "FW" else 1 for letter in text)


TITLES = ["head 7/60", "finetune 10/10", "features of the training images, view 3", "评估 训练集 的 图片 特征 " * 4]


@pytest.mark.parametrize("title", TITLES)
@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("total", [8, 123456])
def test_a_bar_fits_its_terminal(monkeypatch, title, columns, total):
    with terminal(monkeypatch, columns) as shown, ProgressBar(title, total, unit="steps") as bar:
        for _ in range(8):
            time.sleep(0.03)
            bar.add(total // 8, loss=0.87551, accuracy=0.85081)
        bar.finish(**DONE)
    lines = lines_of(shown)
    assert max(map(width, lines)) < columns
    assert any(f"{total}/{total}" in line or "%|" in line for line in lines)
    last = [line.strip() for line in lines if line.strip()][-1]
    loss = "val_loss 0.7001, " if columns == 80 else ""
    assert last.endswith(f"{loss}val_accuracy 0.9123, best so far")  # in place of the bar
    assert last.startswith(title[:4])
    assert (f"{title}: " in last) == (width(title) < 20)
    if columns == 80 and title == "head 7/60":
        assert "accuracy 0.8508, val_loss" in last


@pytest.mark.parametrize("title", TITLES)
def test_a_bar_of_bytes_fits_its_terminal(monkeypatch, title):
    with terminal(monkeypatch, 80) as shown, ProgressBar(title, 4000) as bar:
        for _ in range(8):
            time.sleep(0.03)
            bar.add(500, 12_000_000)
    lines = lines_of(shown)
    assert max(map(width, lines)) < 80
    last = [line.strip() for line in lines if line.strip()][-1]
    assert re.search(r"100%\|.*\| 4000/4000 \[.* MB/s\]$", last)


def test_the_width_is_that_of_the_terminal_also_where_stdout_is_a_file(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest's stdout is no terminal: 80 would be taken
    with terminal(monkeypatch, 50) as shown, ProgressBar("write", 10) as bar:
        bar.add(10)
    assert max(map(width, lines_of(shown))) == 49


def test_a_notebook_has_a_bar(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    with ProgressBar(TITLES[2], 8, unit="steps") as bar:
        bar.add(8, loss=0.5)
        bar.finish(**DONE)
    shown = capsys.readouterr().err
    assert TITLES[2] in shown
    assert "8/8" in shown
    assert "loss 0.5, val_loss 0.7001, val_accuracy 0.9123, best so far" in shown


# Lines


def said(code):
    code = f"import logging, sys; from tfpipe.common.progress import log_line; {code}"
    return subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)


SETTINGS = {
    "": "one\ntwo\n",
    "logging.basicConfig(); ": "",  # who configures logging gets what was configured
    "logging.basicConfig(level=logging.INFO); ": "INFO:tfpipe:one\nINFO:tfpipe:two\n",
    "logging.getLogger('tfpipe').addHandler(logging.NullHandler()); ": "",
    "logging.getLogger('tfpipe').setLevel(logging.WARNING); ": "",
    "sys.stderr = None; ": "",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_lines_are_seen_where_nobody_has_configured_logging(setting):
    done = said(f"{setting}log_line('one'); log_line('two')")
    assert (done.stdout, done.stderr) == ("", SETTINGS[setting])


def test_lines_are_not_doubled_by_who_configures_logging_later():
    assert said("log_line('one'); logging.basicConfig(); log_line('two')").stderr == "one\nINFO:tfpipe:two\n"

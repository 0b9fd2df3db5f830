#!/usr/bin/env python3
"""Opens a page on this machine to try a model on: drop an image, see prediction and reasons.

  demo_page --model=runs/a                       probabilities, Grad-CAM, the nearest training images, the model's input
  demo_page --model=runs/a --data=shards/        place of the training images, if the run does not know it or they moved
  demo_page --model=export/saved_model           an exported model: probabilities and its input
  demo_page --review=eval/ --data=shards/        the suspects of an evaluation, to decide about one by one

One image, dropped, chosen or pasted, is explained in detail; several become a table that can be
kept as CSV. The page listens on 127.0.0.1 only and works without a network. Uploads are deleted
after an hour, and when the page ends: with Ctrl-C or SIGTERM. Needs Gradio: pip install
'tfpipe[page]'.

With --review, keys decide: 1 to 9 give the label, x drops, space or k keeps, u undoes. It writes
eval/decisions.csv, for build --decisions, and nothing else; needs neither Gradio nor TensorFlow.
"""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path

if not __package__:  # run as a file: the checkout's own tfpipe, and none of this folder's files as modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from absl import flags

from tfpipe import commands
from tfpipe.images.headers import DEFAULT_MAX_PIXELS

_MODEL = flags.DEFINE_string(
    "model", None, "Needed, or --review. A run's folder, a .keras file, or a file or folder of an export."
)
_REVIEW = flags.DEFINE_string(
    "review", None, "Folder of an evaluation: show its suspects, with --data and no --model. Default: show the model."
)
_DATA = flags.DEFINE_string("data", None, "Data set with the training images. Default: the run's, if it is still there.")
_SPLIT = flags.DEFINE_string("split", "train", "Of the data set.")
_MAX_TRAINING = flags.DEFINE_integer("max_training", 1000, "At most so many training images, drawn at random; 0: none.", 0)
_PORT = flags.DEFINE_integer("port", 7860, "To listen on; 0: any that is free.", 0, 65535)
_MAX_BYTES = flags.DEFINE_integer("max_bytes", 20_000_000, "Of an uploaded file.", 1)
_MAX_PIXELS = flags.DEFINE_integer("max_pixels", DEFAULT_MAX_PIXELS, "Height x width above which an image is rejected.", 1)
_TRUST = flags.DEFINE_bool("trust", False, "Trust the model's author: open it even if it holds code, or uses files.")
_ALLOWED_HOSTS = flags.DEFINE_list(
    "allowed_hosts", [], "Names of a proxy under which the page answers, on any port, beside 127.0.0.1 and localhost."
)
_OPEN = flags.DEFINE_bool("open", False, "Show the page in the browser.")


def main(arguments: list[str]) -> None:
    """Serves the page until it is stopped."""
    if arguments or (_MODEL.value is None) == (_REVIEW.value is None):
        raise commands.UsageError(f"unexpected: {' '.join(arguments)}" if arguments else "--model is needed, or --review")
    if _REVIEW.value is not None:
        _review()
        return
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio checks that it is up
    from tfpipe.page import preflight

    preflight.check_page(_MODEL.value, _DATA.value, _SPLIT.value, _PORT.value, _ALLOWED_HOSTS.value)
    from tfpipe.page.page import serve  # takes seconds

    page = serve(
        _MODEL.value,
        data=_DATA.value,
        split=_SPLIT.value,
        max_training=_MAX_TRAINING.value,
        port=_PORT.value,
        max_bytes=_MAX_BYTES.value,
        max_pixels=_MAX_PIXELS.value,
        open_browser=_OPEN.value,
        allowed_hosts=_ALLOWED_HOSTS.value,
        trust=_TRUST.value,
    )
    with page as url:
        print(f"{url}  (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


def _review() -> None:
    if not _DATA.value:
        raise commands.UsageError("--data is needed: the data set that was evaluated")
    from tfpipe.page.review_server import serve

    options = {"port": _PORT.value, "allowed_hosts": _ALLOWED_HOSTS.value, "open_browser": _OPEN.value}
    with serve(_REVIEW.value, _DATA.value, **options) as url:
        print(f"{url}  (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


def command() -> None:
    """Runs the command; the console script's entry point."""
    commands.run(main, __name__, when_stopped="The page is closed, and what was uploaded is deleted.")


if __name__ == "__main__":
    command()

"""What can be seen to be wrong with a prediction or a page before TensorFlow is loaded, which takes seconds.

    check_prediction("runs/a", ["photos/"], "predictions.csv")      # raises, or returns

The library calls the same functions at their places; commands call them first.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tfpipe.common import arguments
from tfpipe.formats import preflight as models
from tfpipe.formats.specifications import FILE_NAME
from tfpipe.listing import selection
from tfpipe.prediction import tables
from tfpipe.records import manifest

HOST = "127.0.0.1"
_WITH_PORT = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d+)?")


def check_prediction(
    model: str | os.PathLike[str],
    inputs: Sequence[str],
    output: str | os.PathLike[str],
    *,
    split: str | None = None,
    columns: str = "full",
    format: str | None = None,  # noqa: A002
) -> None:
    """Checks the arguments of a prediction.

    Raises:
        ValueError, FileNotFoundError, DataError, ImportError, OSError: as `tfpipe.predict`.
    """
    path = check_output(Path(output), model)
    tables.check_options(format or format_of(path), columns)
    selection.check_given(inputs, split)
    models.find_model(model)


def check_page(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str] | None,
    split: str,
    port: int,
    allowed_hosts: Sequence[str] = (),
) -> None:
    """Checks the arguments of a page.

    Raises:
        ValueError, FileNotFoundError, DataError, ImportError, OSError: as `tfpipe.page.page.serve`.
    """
    host_names(allowed_hosts)
    models.check_packages("the page needs", ("gradio",), "page")
    free_port(port)
    models.find_model(model)
    if data is not None:
        manifest.load(data).split(split)


def format_of(path: Path) -> str:
    """Returns the format that the name of an output ends with.

    Raises:
        ValueError: it is .json, which one object would be.
    """
    if path.suffix.lower() == ".json":
        raise ValueError(f"{path}: lines of JSON are called .jsonl: rename the output, or say format=jsonl or format=csv")
    return "jsonl" if path.suffix.lower() == ".jsonl" else "csv"


def check_output(path: Path, model: Any) -> Path:
    """Returns the path of an output that may be written; raises ValueError or OSError for others."""
    if path == Path("-"):
        raise ValueError("-: output must be the name of a file: rows are not written to standard output")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: output must be a file (this is a folder or a device)")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent} to write to")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "the folder cannot be written to", os.fspath(path))
    if (path.parent / manifest.FILE_NAME).is_file():
        raise ValueError(f"{path}: output must be outside of the data set's folder {path.parent}")
    if (path.parent / FILE_NAME).is_file():
        raise ValueError(f"{path}: output must be outside of the export's folder {path.parent}")
    if isinstance(model, str | os.PathLike):
        real, own = path.resolve(), Path(model).resolve()
        if real == own or (own.is_dir() and real.is_relative_to(own)):
            raise ValueError(f"{path}: output must be another file than the model, and outside of its folder ({model})")
    return path


def host_names(hosts: Sequence[str]) -> frozenset[str]:
    """Returns names of hosts as they are compared: in lower case, each without its port, which plays no part.

    Raises:
        ValueError: one is none.
    """
    wanted = "names of hosts, each once, as demo.example or demo.example:8443"
    names = {host: host_name(host) for host in (arguments.texts("allowed_hosts", hosts, wanted) if hosts else ())}
    if wrong := [host for host, name in names.items() if not (name and _WITH_PORT.fullmatch(host))]:
        raise arguments.wrong("allowed_hosts", wanted, wrong[0])
    return frozenset(filter(None, names.values()))


def host_name(host: str) -> str | None:
    """Returns the name, in lower case, of a host that may have a port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def free_port(port: int) -> int:
    """Returns the port, or a free one for 0.

    Raises:
        OSError: it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            advice = "end what runs there, or choose another with --port (0: any that is free)"
            raise OSError(error.errno, f"port {port} of {HOST} cannot be had ({error.strerror}); {advice}") from None
        found: int = probe.getsockname()[1]
        return found

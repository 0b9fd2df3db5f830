"""Checks of a page's arguments that need no TensorFlow, which takes seconds to load."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from tfpipe.common import arguments
from tfpipe.formats.preflight import check_packages, find_model
from tfpipe.records import manifest

HOST = "127.0.0.1"
NOT_OWN = "This page answers to its own names only (--allowed_hosts)."
_HOSTS = frozenset((HOST, "localhost", "::1"))
_WITH_PORT = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d+)?")


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
    check_packages("the page needs", ("gradio",), "page")
    free_port(port)
    find_model(model)
    if data is not None:
        manifest.load(data).split(split)


def host_names(hosts: Sequence[str]) -> frozenset[str]:
    """Returns host names in lower case, without ports; raises ValueError for others."""
    wanted = "names of hosts, each once, as demo.example or demo.example:8443"
    names = {host: host_name(host) for host in (arguments.texts("allowed_hosts", hosts, wanted) if hosts else ())}
    if wrong := [host for host, name in names.items() if not (name and _WITH_PORT.fullmatch(host))]:
        raise arguments.wrong("allowed_hosts", wanted, wrong[0])
    return frozenset(filter(None, names.values()))


def host_name(host: str) -> str | None:
    """Returns the name of a host in lower case, without its port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def is_own_page(host: str, origin: str | None, allowed: frozenset[str]) -> bool:
    """Returns whether a request is to one of a page's names, and from its own pages, as the browser reports them.

    Under an allowed name, any port is the page's; of this machine, where others listen, too, its own.
    """
    host = host.lower()
    sender = host if origin is None else origin.lower().partition("://")[2]
    return host_name(host) in allowed | _HOSTS and (sender == host or host_name(sender) in allowed - _HOSTS)


def free_port(port: int) -> int:
    """Returns the port, or a free one for 0; raises OSError if it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            advice = "end what runs there, or choose another with --port (0: any that is free)"
            raise OSError(error.errno, f"port {port} of {HOST} cannot be had ({error.strerror}); {advice}") from None
        found: int = probe.getsockname()[1]
        return found

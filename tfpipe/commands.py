"""What the commands of tools/ share: help, one-line errors, exit statuses, signals, parsers.

    def command() -> None:
        commands.run(main, __name__)

A command checks what it can before it imports TensorFlow, so that errors come at once.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar, cast

import absl.logging
from absl import app, flags

import tfpipe
from tfpipe import start_up
from tfpipe.common import copies, stores
from tfpipe.common.arguments import nearest
from tfpipe.common.errors import DataError

_VERSION = flags.DEFINE_bool("version", False, "Show the version.")

Number = TypeVar("Number", int, float)

# Former names of flags, by tool: they work, with a warning, until 1.0.
RENAMED_FLAGS = {
    "export_model": {"run": "model"},
    "train": {"from": "from_run", "profile": "profile_steps"},
}

# Flags that name files, whose URLs are replaced by local copies; --data is read where it is.
_FETCHED = {"checkpoint", "evaluation", "from_run", "images", "input", "model", "unlabelled", "weights"}
_TOGETHER = {"cluster", "engine", "shard", "worker", "workers_folder"}
_IN_STORE = re.compile(r"(?<![^=,])[A-Za-z][A-Za-z0-9+.-]*://[^,]*")
_RESULTS = {"build_tfrecords": "manifest.json", "train": "run.json"}  # without which an output must be empty
_places: dict[str, str] = {}  # the URLs of local copies

_USAGE = 2
_SIGNALLED = 128  # plus the signal's number, as in shells
_ENDING = (signal.SIGTERM, signal.SIGHUP)  # of systemd, Docker, SLURM, Kubernetes, timeout; of a closed terminal
_AGAIN_SECONDS = 5.0
_HOME = re.compile(r"(?:(?<=[=,])|^)~(?=/|$)")
# A Python parameter in an error message: "batch_size must be ...", "top_k=0", "(on_error=skip)",
# "unfreeze: ...".
_PARAMETER = re.compile(
    r"(?<![\w./-])([a-z]+_[a-z_]+\b(?![\w./-])|[a-z][a-z0-9]*(?==(?!=)))|^([a-z][a-z0-9]*)(?= must be |: | is of )"
)


class UsageError(Exception):
    """The command line is wrong; the message says what is right."""


def run(
    main: Callable[[list[str]], int | None],
    module_name: str,
    *,
    key_flags: Collection[str] | None = None,
    when_stopped: str = "",
) -> NoReturn:
    """Runs a command and ends the process.

    Its status is 0, or what `main` returns; 1 for an error, 2 for wrong usage, 130 for Ctrl-C, 143
    for SIGTERM, 129 for SIGHUP.

    Args:
        main: takes the positional arguments, without the program's name.
        module_name: `__name__` of the module that defines the flags, with the help text as its
            docstring.
        key_flags: those that --help shows; None: all of the module.
        when_stopped: message after a signal: what is kept, and how to continue. Notes of the
            KeyboardInterrupt replace it.
    """
    module = sys.modules[module_name]
    tool = Path(getattr(module, "__file__", None) or sys.argv[0]).stem
    # absl shows the flags of the main module only, and knows it by the program's name: a console
    # script's is another file.
    for flag in flags.FLAGS.flags_by_module_dict().get(module_name, []):
        if key_flags is None or flag.name in key_flags:
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["version"])
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
        flag.allow_overwrite = False  # of --input given for each split, the last alone would count
    renamed = RENAMED_FLAGS.get(tool, {})
    for old, new in renamed.items():
        flags.DEFINE_alias(old, new)
    sys.modules["__main__"].__doc__ = _help_text(module.__doc__ or "", tool)
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a class name that the terminal cannot show must not be an error
            stream.reconfigure(errors="backslashreplace")
    _log_to_stderr()
    start_up.quieten()
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # else TensorFlow takes all: a GPU is for several processes
    app.run(
        lambda argv: sys.exit(_guarded(main, argv[1:], when_stopped, tool)),
        flags_parser=functools.partial(_parse_flags, renamed),
    )
    raise AssertionError  # app.run never returns


def _help_text(text: str, tool: str) -> str:
    """Returns a docstring with the program's name in its examples, comments in their columns."""
    program = Path(sys.argv[0]).name
    shift = " " * (len(tool) - len(program))
    example = re.compile(rf"^(  (?:.*\| )?){tool}(?= )(.*?)((?: {{2,}}\S.*)?)$", re.MULTILINE)
    return example.sub(lambda found: found[1] + program + found[2] + (shift if found[3] else "") + found[3], text)


def _parse_flags(renamed: Mapping[str, str], argv: list[str]) -> list[str]:
    # absl exits with 1 after --help as after an unknown flag; scripts must be able to tell them
    # from a failure.
    try:
        _check_homes(argv[1:])
        remaining: list[str] = flags.FLAGS(argv)
    except (flags.Error, UsageError) as error:
        hint = "; a flag is given once" if "already defined as" in str(error) else ""
        if isinstance(error, flags.UnrecognizedFlagError) and "Did you mean" not in str(error):  # absl skips short words
            hint = nearest(error.flagname, [flag.name for flag in flags.FLAGS.get_key_flags_for_module(argv[0])])
        _warn(f"error: {error}{hint}\nSee --help.")
        sys.exit(_USAGE)
    except BrokenPipeError:  # --help | head
        _drop_output()
        sys.exit(0)
    except SystemExit:  # --help has been shown
        sys.exit(0)
    if _VERSION.value:
        sys.stdout.write(f"tfpipe {tfpipe.__version__}\n")
        sys.exit(0)
    for old, new in renamed.items():
        if flags.FLAGS[old].present:
            _warn(f"warning: --{old} is now called --{new}; the old name works until 1.0")
    return remaining


def _check_homes(words: list[str]) -> None:
    """Raises UsageError for --output=~/a: the shell does not expand it, a folder ~ would be made."""
    for word in words:
        if (meant := _HOME.sub("$HOME", word)) != word and not word.startswith(("--flagfile", "-flagfile")):  # absl's own
            raise UsageError(f'{word}: the shell leaves ~ as it is here; write "{meant}" (or ./~ for a folder of that name)')


def _open_closed_streams() -> None:
    """Opens the null device for closed streams: the next file would take their numbers."""
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115 (for the life of the process)


def _log_to_stderr() -> None:
    log = logging.getLogger("tfpipe")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler(sys.stderr))
    log.propagate = False  # absl's handler would repeat every line, with a prefix meant for servers
    absl.logging.set_verbosity(absl.logging.ERROR)  # TensorFlow logs how long it took to save


def _guarded(main: Callable[[list[str]], int | None], arguments: list[str], when_stopped: str, tool: str) -> int:
    received: list[int] = []
    try:
        _raise_on_signals(received)
        try:
            with _stores(tool):
                return main(arguments) or 0
        except Exception as error:
            if received:  # an error of interrupted work
                raise KeyboardInterrupt from None
            return _report(error)
    except KeyboardInterrupt as stop:
        _settle_signals()
        _warn(f"\nstopped. {' '.join(getattr(stop, '__notes__', ())) or when_stopped}".rstrip())
        return _SIGNALLED + (received or [signal.SIGINT])[0]
    finally:
        _settle_signals()


@contextlib.contextmanager
def _stores(tool: str) -> Iterator[None]:
    """Puts local paths in place of flags' URLs; what is in those of outputs at the end is stored."""
    if tool == "build_tfrecords":
        _check_outside()
    with contextlib.ExitStack() as stack:
        for name in _FETCHED & set(flags.FLAGS):
            flag = flags.FLAGS[name]
            if isinstance(flag.value, str):
                flag.value = _localised(flag.value)
            elif isinstance(flag.value, list):
                flag.value = list(map(_localised, flag.value))
        for name in {"output"} & set(flags.FLAGS):
            flag = flags.FLAGS[name]
            stores.check("output", flag.value or "")
            if stores.is_remote(flag.value):
                _check_alone()
                flag.value = _renamed(flag.value, stack.enter_context(copies.sent(flag.value, _RESULTS.get(tool, ""))))
        if _places:
            stack.enter_context(contextlib.redirect_stdout(cast("Any", _AsGiven(sys.stdout))))
        yield


def _localised(value: str) -> str:
    def replaced(found: re.Match[str]) -> str:
        stores.check("a place in a store", found[0])
        return _renamed(found[0], copies.fetched(found[0]))

    return _IN_STORE.sub(replaced, value)


def _check_outside() -> None:
    output = stores.url(flags.FLAGS["output"].value or "").rstrip("/")
    for found in _IN_STORE.findall(flags.FLAGS["input"].value or ""):
        if f"{output}/".startswith(f"{stores.url(found).rstrip('/')}/"):
            for name, place in (("input", found), ("output", output)):
                stores.check(name, place)
            raise ValueError(f"{output}: the output lies inside the input {found}: its own shards would become inputs")


def _check_alone() -> None:
    together = [
        f"--{name}" for name in sorted(_TOGETHER & set(flags.FLAGS)) if flags.FLAGS[name].value != flags.FLAGS[name].default
    ]
    together += ["TF_CONFIG"] * ("cluster" in flags.FLAGS and bool(os.environ.get("TF_CONFIG")))
    if together:
        raise UsageError(f"--output in a store is for one process, {', '.join(together)} for several: give a shared folder")


def _renamed(url: str, local: Path) -> str:
    _places[os.fspath(local)] = url
    return os.fspath(local)


def _as_given(text: str) -> str:
    """Returns a text with the URLs that were given in place of the paths of their copies."""
    for local, url in _places.items():
        text = text.replace(local, url.rstrip("/"))
    return text


class _AsGiven:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._stream.write(_as_given(text))


def _raise_on_signals(received: list[int]) -> None:
    """Makes SIGTERM and SIGHUP raise KeyboardInterrupt, unless they are ignored, as by nohup."""

    def handle(number: int, _: Any) -> None:
        if number != signal.SIGALRM:
            if received:  # `timeout` sends it twice: cleaning up goes on
                return
            received.append(number)
            sys.unraisablehook = lambda _: None
        # An exception raised in a callback of the interpreter, in the middle of an import, say, is
        # lost.
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, handle)
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)


def _settle_signals() -> None:
    """Stops signals from raising: the work is over, and users would see a traceback."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (signal.SIGALRM, *_ENDING):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _report(error: Exception) -> int:
    """Returns the exit status, after writing one line; raises an error that only a bug explains."""
    if isinstance(error, BrokenPipeError):  # the reader of our output is done: `| head`
        _drop_output()
        return 1
    if isinstance(error, UsageError):
        _warn(f"error: {in_flags(str(error))}\nSee --help.")
        return _USAGE
    if not isinstance(error, DataError | ValueError | TypeError | OSError | ImportError | RuntimeError | MemoryError):
        raise error
    _warn(f"error: {in_flags(_message(error))}")
    return 1


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _message(error: Exception) -> str:
    """Returns an error's message; one of the system without its number."""
    if not isinstance(error, OSError) or error.errno is None or not error.strerror:
        return str(error)
    files = [os.fsdecode(file) for file in (error.filename, error.filename2) if isinstance(file, str | bytes)]
    reason = error.strerror[0].lower() + error.strerror[1:]
    return f"{' -> '.join(files)}: {reason}" if files else reason


def in_flags(message: str) -> str:
    """Returns a message of the library with flags in place of parameters."""

    def named(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        return f"--{name}" if name in flags.FLAGS else name

    return _PARAMETER.sub(named, message)


def _warn(text: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that was closed
        sys.stderr.write(f"{_as_given(text)}\n")


def parse_paths(flag: str, value: str) -> str | dict[str, str]:
    """Returns a flag's path, or its paths by name: "photos" or "train=photos/a,test=photos/b"."""
    if "=" not in value or Path(value).exists():  # a path may hold an equals sign or a comma
        return value
    return parse_pairs(flag, value)


def parse_pairs(flag: str, value: str) -> dict[str, str]:
    """Returns {"train": "a", "test": "b"} for "train=a,test=b"."""
    pairs: dict[str, str] = {}
    for item in value.split(","):
        name, equals, text = item.partition("=")
        if not (name.strip() and equals and text.strip()) or name.strip() in pairs:
            raise UsageError(f"--{flag} must be NAME=VALUE,NAME=VALUE with different names (got {value!r})")
        pairs[name.strip()] = text.strip()
    return pairs


def parse_size(flag: str, text: str) -> tuple[int, int]:
    """Returns (height, width) for "224" or "240x320"."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise UsageError(f"--{flag} must be SIDE or HEIGHTxWIDTH, as 224 or 240x320 (got {text!r})")
    return int(sides[0]), int(sides[-1])


def parse_number(flag: str, text: str, kind: Callable[[str], Number]) -> Number:
    """Returns `kind(text)`."""
    try:
        return kind(text)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"--{flag}: {text!r} is not {'a whole number' if kind is int else 'a number'}") from None


def parse_numbers(flag: str, value: str, kind: Callable[[str], Number]) -> dict[str, Number]:
    """Returns {"train": 0.8, "test": 0.2} for "train=0.8,test=0.2"."""
    return {name: parse_number(flag, text, kind) for name, text in parse_pairs(flag, value).items()}

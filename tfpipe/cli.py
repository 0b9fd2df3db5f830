"""`tfpipe COMMAND`: one program for the commands of tools/, which keep their own names as aliases.

Help, version and errors of this module import neither absl nor anything heavy; a command's module
is imported when it runs.
"""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple

import tfpipe
from tfpipe.common.arguments import nearest

_USAGE = 2


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        summary: one line of `tfpipe --help`.
        tool: module of tfpipe.tools that runs it.
        argv: program name, and arguments that precede the user's.
        has_flags: whether it takes flags beside the common ones.
    """

    summary: str
    tool: str
    argv: tuple[str, ...]
    has_flags: bool = True


def _inspect(name: str, summary: str) -> Command:
    return Command(summary, "inspect_tfrecords", ("tfpipe", name))


COMMANDS = {
    "build": Command("Pack images, byte for byte, into sharded TFRecords.", "build_tfrecords", ("tfpipe build",)),
    "verify": _inspect("verify", "Check every byte of a data set."),
    "show": _inspect("show", "Draw a contact sheet, or the augmentations of some images."),
    "info": _inspect("info", "Print a data set at a glance."),
    "extract": _inspect("extract", "Get the original files back."),
    "diff": _inspect("diff", "Compare two data sets, or a data set with its folders."),
    "salvage": _inspect("salvage", "Save the intact records of a damaged shard."),
    "train": Command("Train a classifier.", "train", ("tfpipe train",)),
    "evaluate": Command("Measure a classifier on a labelled split.", "evaluate", ("tfpipe evaluate",)),
    "compare": Command("Test whether two evaluations differ.", "evaluate", ("tfpipe", "compare"), has_flags=False),
    "export": Command(
        "Write a model as SavedModel, .pb, TFLite, ONNX, OpenVINO or Keras file.", "export_model", ("tfpipe export",)
    ),
    "predict": Command("Write a model's predictions for images to a table.", "predict", ("tfpipe predict",)),
    "page": Command("Serve a page on this machine to try a model on.", "demo_page", ("tfpipe page",)),
    "benchmark": Command("Measure speed against a named reference.", "benchmark", ("tfpipe benchmark",)),
}
_COMPLETION = "completion"
_SHELLS = ("bash", "zsh")


def main() -> None:
    """Runs the subcommand of sys.argv; the console script's entry point."""
    name, *rest = sys.argv[1:] or [""]
    if name in COMMANDS:
        command = COMMANDS[name]
        sys.argv = [*command.argv, *rest]
        importlib.import_module(f"tfpipe.tools.{command.tool}").command()
    elif name in ("--help", "-help", "-h", "help"):
        sys.stdout.write(_help())
    elif name in ("--version", "-version"):
        sys.stdout.write(f"tfpipe {tfpipe.__version__}\n")
    elif name == _COMPLETION and len(rest) == 1 and rest[0] in _SHELLS:
        sys.stdout.write(_script(rest[0]))
    else:
        sys.stderr.write(f"error: {_problem(name)}\nSee tfpipe --help.\n")
        sys.exit(_USAGE)


def _problem(name: str) -> str:
    if name == _COMPLETION:
        return f"usage: tfpipe {_COMPLETION} {'|'.join(_SHELLS)}"
    if not name:
        return f"a command is missing; there are: {', '.join(COMMANDS)}"
    return f"unknown command {name!r}{nearest(name, [*COMMANDS, _COMPLETION])}"


def _help() -> str:
    summaries = {name: command.summary for name, command in COMMANDS.items()}
    summaries[_COMPLETION] = "Print a script that completes commands and flags in a shell."
    lines = "".join(f"  {name:10}  {summary}\n" for name, summary in summaries.items())
    return f"""\
From folders of photographs to a classifier you can trust.

usage: tfpipe COMMAND ...

{lines}
tfpipe COMMAND --help shows a command's arguments and flags; tfpipe --version the version.

Completion, once, then in every new shell:
  tfpipe completion bash > ~/.local/share/bash-completion/completions/tfpipe
  tfpipe completion zsh > ~/.zfunc/_tfpipe      # in ~/.zshrc, before compinit: fpath+=~/.zfunc
"""


def _flags() -> dict[str, list[str]]:
    """Returns the flags of each subcommand, with "=" where a value follows."""
    from absl import flags

    found: dict[str, list[str]] = {}
    of_tool: dict[str, dict[str, str]] = {}
    for name, command in COMMANDS.items():
        module = importlib.import_module(f"tfpipe.tools.{command.tool}")
        if command.tool not in of_tool:
            defined = flags.FLAGS.flags_by_module_dict().get(module.__name__, [])
            of_tool[command.tool] = {flag.name: f"--{flag.name}{'' if flag.boolean else '='}" for flag in defined}
            for flag in list(defined):  # commands have flags of the same names
                delattr(flags.FLAGS, flag.name)
        subcommands = getattr(module, "SUBCOMMANDS", {})
        chosen = subcommands[name].flags if name in subcommands else of_tool[command.tool] if command.has_flags else ()
        found[name] = ["--help", *(of_tool[command.tool][flag] for flag in chosen)]
    return found


_BASH = """\
_tfpipe() {{
    local words="" current="${{COMP_WORDS[COMP_CWORD]}}"
    if ((COMP_CWORD == 1)); then
        words="{commands} --help --version"
    else
        case "${{COMP_WORDS[1]}}" in
{cases}
            {completion}) words="{shells}" ;;
        esac
        [[ $current == -* || ${{COMP_WORDS[1]}} == {completion} ]] || words=""
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    [[ ${{#COMPREPLY[@]}} != 1 || ${{COMPREPLY[0]}} != *= ]] || compopt -o nospace
}}
complete -o default -F _tfpipe tfpipe
"""

_ZSH = """\
#compdef tfpipe
_tfpipe() {{
    local -a words_
    if ((CURRENT == 2)); then
        compadd -- {commands} --help --version
        return
    fi
    case $words[2] in
{cases}
        {completion}) compadd -- {shells}; return ;;
    esac
    if [[ $PREFIX == -* ]]; then
        compadd -S '' -- ${{(M)words_:#*=}}
        compadd -- ${{words_:#*=}}
    else
        _files
    fi
}}
if [[ $funcstack[1] == _tfpipe ]]; then _tfpipe "$@"; else compdef _tfpipe tfpipe; fi
"""


def _script(shell: str) -> str:
    form, case = (_BASH, '            {}) words="{}" ;;') if shell == "bash" else (_ZSH, "        {}) words_=({}) ;;")
    cases = "\n".join(case.format(name, " ".join(words)) for name, words in _flags().items())
    commands = " ".join([*COMMANDS, _COMPLETION])
    return form.format(commands=commands, cases=cases, completion=_COMPLETION, shells=" ".join(_SHELLS))

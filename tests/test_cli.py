"""`tfpipe COMMAND`: subcommands, their help, completion, former flags."""

import re
import shutil
import subprocess
import sys

import pytest
from conftest import CHECKOUT
from test_start_up import WITHOUT, child

import tfpipe
from tfpipe import cli, commands

START = """
import sys
from tfpipe.cli import main
sys.argv = ["tfpipe", *{arguments}]
try:
    main()
except SystemExit as ended:
    print(ended.code, file=sys.stderr)
print(*sorted(sys.modules.keys() & {modules}), file=sys.stderr)
"""


def start(*arguments, modules=frozenset()):
    return child(START.format(arguments=arguments, modules=set(modules)))


def test_every_tool_is_a_subcommand():
    tools = {path.stem for path in (CHECKOUT / "tools").glob("*.py")} - {"__init__", "demo"}
    assert {command.tool for command in cli.COMMANDS.values()} == tools


def test_help_lists_the_subcommands_at_once():
    done = start("--help", modules={*WITHOUT, "absl"})
    assert done.stderr == "\n"  # no exit status but 0, and nothing heavy
    for name, command in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", done.stdout, re.MULTILINE)
    assert "tfpipe completion bash" in done.stdout


def test_version_and_python_m():
    done = subprocess.run([sys.executable, "-m", "tfpipe", "--version"], cwd=CHECKOUT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"tfpipe {tfpipe.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a command is missing; there are: build, verify"),
        (["trian"], "unknown command 'trian' (did you mean train?)"),
        (["xyz"], "unknown command 'xyz'\n"),
        (["completion", "fish"], "usage: tfpipe completion bash|zsh"),
        (["train", "--data=a"], "--data and --output are needed"),
        (["train", "--dta=a"], "Unknown command line flag 'dta'. Did you mean: data"),
        (["verify"], "usage: verify DIR (got 0 arguments)"),
        (["verify", "a", "--split=test"], "--split is not a flag of verify"),
        (["compare", "a"], "usage: compare A B (got 1 argument)"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, message):
    done = start(*arguments)
    assert f"error: {message}" in done.stderr
    assert (done.stdout, done.stderr.splitlines()[-2]) == ("", "2")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_subcommand_shows_its_flags_and_the_programs_name(name):
    done = start(name, "--help", modules=WITHOUT)
    assert done.stderr == "0\n\n"
    program = " ".join(cli.COMMANDS[name].argv)
    assert re.search(rf"^  {program} ", done.stdout, re.MULTILINE)
    assert not re.search(rf"^  {cli.COMMANDS[name].tool} ", done.stdout, re.MULTILINE)
    shown = set(re.findall(r"^  --(?:\[no\])?(\w+)", done.stdout, re.MULTILINE)) - {"version"}
    if name == "verify":
        assert shown == {"decode", "near_duplicates", "workers", "limit"}
    if name == "compare":
        assert shown == set()
    assert not shown & set(commands.RENAMED_FLAGS.get(cli.COMMANDS[name].tool, {}))


@pytest.fixture(scope="module")
def scripts():
    return {shell: start("completion", shell).stdout for shell in ("bash", "zsh")}


def test_listing_flags_loads_nothing_heavy():
    assert start("completion", "bash", modules=WITHOUT).stderr == "\n"


TYPED = [
    (["tr"], ["train"]),
    (["ex"], ["extract", "export"]),
    (["train", "--ba"], ["--backbone=", "--balanced", "--batch_size="]),
    (["export", "--mo"], ["--model="]),
    (["verify", "--"], ["--help", "--decode", "--near_duplicates", "--workers=", "--limit="]),
    (["compare", "--"], ["--help"]),
    (["completion", "z"], ["zsh"]),
    (["train", "x"], []),
]


@pytest.mark.parametrize(("words", "expected"), TYPED)
def test_bash_completes(scripts, words, expected):
    if not (bash := shutil.which("bash")):
        pytest.skip("no bash here")
    line = f"COMP_WORDS=(tfpipe {' '.join(words)}); COMP_CWORD={len(words)}; compopt() {{ :; }}; _tfpipe"
    code = f'{scripts["bash"]}\n{line}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run([bash, "-eu", "-c", code], capture_output=True, text=True)
    assert (sorted(done.stdout.split()), done.stderr) == (sorted(expected), "")


@pytest.mark.parametrize(("words", "expected"), TYPED)
def test_zsh_completes(scripts, words, expected):
    if not (zsh := shutil.which("zsh")):
        pytest.skip("no zsh here")
    stubs = """
        compdef() { :; }
        _files() { :; }
        compadd() { while [[ $1 != -- ]]; do shift; done; shift; print -l -- ${(M)@:#$PREFIX*}; }
    """
    typed = f"words=(tfpipe {' '.join(words)}); CURRENT={len(words) + 1}; PREFIX={words[-1]}; _tfpipe"
    done = subprocess.run([zsh, "-f", "-c", f"{stubs}\n{scripts['zsh']}\n{typed}"], capture_output=True, text=True)
    assert (sorted(done.stdout.split()), done.stderr) == (sorted(expected), "")


@pytest.mark.parametrize(("tool", "names"), commands.RENAMED_FLAGS.items())
def test_former_flags_work_with_a_warning(tool, names):
    given = [f"--{old}=1" for old in names]
    code = f"""
from absl import flags
from tfpipe import commands
from tfpipe.tools import {tool}
import sys
sys.argv = ["{tool}", *{given}]
commands.run(lambda _: print(*(flags.FLAGS[new].value for new in {list(names.values())})), {tool}.__name__)
"""
    done = child(code)
    assert done.stdout.split() == ["1"] * len(names)
    warnings = [f"warning: --{old} is now called --{new}; the old name works until 1.0" for old, new in names.items()]
    assert done.stderr.splitlines() == warnings

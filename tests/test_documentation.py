"""The documentation names what is there, builds without warnings, and is complete. tests/test_readme.py runs its blocks."""

import ast
import functools
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import CHECKOUT
from documentation_fixtures import blocks, pages, present

import tfpipe

MOST_COLUMNS = 100
OLD_FLAGS = {"run", "profile", "from"}  # named in a table of old names
OTHER_PROGRAMS = {"editable", "inplace", "strict"}  # flags of pip, jupyter, mkdocs
CODE = re.compile(r"`([^`\n]+)`")


@pytest.fixture(scope="module")
def texts():
    return pages()


def prose(text):
    """(line number, line) outside of fences, tables and indented code."""
    is_code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            is_code = not is_code
        elif not is_code and not line.lstrip().startswith("|") and not line.startswith("<!--"):
            yield number, line


def test_prose_has_at_most_100_columns(texts):
    too_long = [f"{name}:{number}" for name, text in texts.items() for number, line in prose(text) if len(line) > MOST_COLUMNS]
    assert too_long == []
    assert [number for number, _ in prose("a\n```sh\nb\n```\n| c |\nd")] == [1, 6]


def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra `docs` is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=CHECKOUT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "tfpipe.load_manifest" in (tmp_path / "site/reference/data/index.html").read_text("utf-8")
    guarantees = (tmp_path / "site/guarantees/index.html").read_text("utf-8")
    assert "G12" in guarantees


def named_in_reference(texts):
    reference = "\n".join(text for name, text in texts.items() if name.startswith("docs/reference/"))
    return set(re.findall(r"^::: tfpipe\.(\w+)$|^ +heading: tfpipe\.(\w+)$", reference, re.MULTILINE))


def test_the_reference_has_every_public_name(texts):
    assert {one or other for one, other in named_in_reference(texts)} == set(tfpipe.__all__)


def test_the_index_has_every_decision(texts):
    records = sorted(name for name in texts if name.startswith("docs/decisions/0"))
    listed = re.findall(r"^- \[(\d{4})\]\((docs/decisions/(\d{4})-[\w-]+\.md)\) (.+)$", texts["BUILD_NOTES.md"], re.MULTILINE)
    assert [path for _, path, _, _ in listed] == records
    assert [int(number) for number, _, _, _ in listed] == list(range(1, len(records) + 1))
    for number, path, of_path, title in listed:
        assert number == of_path
        assert texts[path].startswith(f"# {number}. {title}\n\n## Decision\n")


def test_links_within_the_repository_lead_somewhere(texts):
    wrong = [
        f"{name}: {target}"
        for name, text in texts.items()
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]*)?\)", "\n".join(line for _, line in prose(text)))
        if not (CHECKOUT / name).parent.joinpath(target).exists()
    ]
    assert wrong == []


def test_names_of_files_and_tests_exist(texts):
    sources = {path.relative_to(CHECKOUT).as_posix(): path.read_text("utf-8") for path in (CHECKOUT / "tests").rglob("*.py")}
    defined = set(re.findall(r"^def (test_\w+)", "\n".join(sources.values()), re.MULTILINE))
    wrong = []
    for name, text in texts.items():
        paths = set(re.findall(r"\b(?:examples|tests|tools|tfpipe)/[\w/]+\.(?:py|sh)\b", text))
        if name.startswith("docs/measurements/"):
            paths = {path for path in paths if not path.startswith("tfpipe/")}
        wrong += [f"{name}: {path}" for path in paths if not (CHECKOUT / path).exists()]
        tests = {code for code in CODE.findall(text) if re.fullmatch(r"test_\w+", code)} - {"test_images"}
        wrong += [f"{name}: {test}" for test in tests - defined if not (CHECKOUT / "tests" / f"{test}.py").exists()]
    assert wrong == []


def test_the_tests_of_each_guarantee_exist(texts):
    rows = re.findall(r"^\| (G\d+) \| .* \| (.*) \|$", texts["README.md"], re.MULTILINE)
    assert [name for name, _ in rows] == [f"G{number}" for number in range(1, 13)]
    for name, tests in rows:
        pattern, *files = re.findall(r"`([^`]+)`", tests)
        assert pattern == f"test_{name.lower()}_*"
        assert files
        for file in files:
            begin = pattern[:-1] if "scans" not in file and "pixels" not in file else "test_"
            assert f"\ndef {begin}" in (CHECKOUT / file).read_text("utf-8"), (name, file)


@functools.cache
def flags_of(command):
    """Names of a command's flags, as its help has them."""
    done = subprocess.run([sys.executable, "-m", "tfpipe", command, "--help"], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^  --(\[no\])?(\w+)", done.stdout, re.MULTILINE)
    return {name for _, name in found} | {f"no{name}" for negated, name in found if negated} | {"help", "version"}


def tfpipe_lines(text):
    """(command, flags) of each call of tfpipe in lines of the shell or in code within prose."""
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["tfpipe"] and len(words) > 1 and words[1] != "completion" and words[1].islower():
            yield words[1].rstrip(","), re.findall(r"(?<=--)\w+", " ".join(words[2:]))


def test_every_flag_that_is_named_exists(texts):
    used, alone = [], []
    for name, text in present(texts).items():
        code = [block.text for block in blocks(name, text) if block.language == "sh"]
        inline = CODE.findall("\n".join(line for line in text.splitlines() if not line.startswith("```")))
        calls = [line for line in inline if line.startswith("tfpipe ") and "'" not in line.replace("','", "")]
        used += [(name, *call) for call in tfpipe_lines("\n".join([*code, *calls]))]
        alone += [(name, flag) for piece in inline for flag in re.findall(r"(?:^| )--(\w+)", piece)]
    assert len(used) > 20
    unknown = [(name, command, set(flags) - flags_of(command) - OLD_FLAGS) for name, command, flags in used]
    wrong = {f"{name}: {command} --{flag}" for name, command, flags in unknown for flag in flags}
    known = set().union(*(flags_of(command) for command in {command for _, command, _ in used})) | OLD_FLAGS | OTHER_PROGRAMS
    wrong |= {f"{name}: --{flag}" for name, flag in alone if flag not in known}
    assert wrong == set()


def test_blocks_of_python_are_python_and_name_what_is_exported(texts):
    found = [block for name, text in present(texts).items() for block in blocks(name, text) if block.language == "python"]
    assert len(found) > 10
    for block in found:
        tree = ast.parse(block.text, block.page)
        nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
        used = {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "tfpipe"}
        assert used <= set(tfpipe.__all__), block.page


def test_scripts_that_are_named_are_scripts():
    for script in ("demo", "test", "figures", "venv"):
        subprocess.run(["bash", "-n", CHECKOUT / "tools" / f"{script}.sh"], check=True)


def test_the_first_block_of_the_readme_is_how_to_begin(texts):
    first = blocks("README.md", texts["README.md"])[0].text
    lines = [line.partition("#")[0].split() for line in first.splitlines()]
    assert lines == [
        ["bash", "tools/demo.sh"],
        ["bash", "tools/test.sh"],
    ]  # the second one runs this; tests/test_demo.py the first


@pytest.mark.parametrize("path", sorted((CHECKOUT / "docs/notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_executed_and_small(path):
    assert path.stat().st_size < 200_000
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    for cell in cells:
        ast.parse("".join(cell["source"]))

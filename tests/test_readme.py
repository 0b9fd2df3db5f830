"""README.md's blocks, run as they are printed: in order, in one folder, with nothing importable but what they install.

What is not as printed: ImageNet's weights are a file here, and images have 32 pixels a side, a fortieth of the time;
the page's port is any that is free; and pip, which would have to download, makes importable what setup.cfg says it would bring.
"""

import importlib.metadata
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request

import pytest
from conftest import CHECKOUT, write
from test_architecture import requirements
from transfer_fixtures import CLASS_NAMES, colour_picture

pytestmark = pytest.mark.tf

SIDE = 32
VGG16 = "weights/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"

HIDE = """
import importlib.machinery, os, pathlib
hidden = set(pathlib.Path(os.environ["HIDDEN_MODULES"]).read_text().split())
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *place: None if name in hidden else find(name, *place)
"""


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", (CHECKOUT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)


def brought(roots):
    """Distributions that pip installs for some, those of extras included where their requirers name them."""
    todo, found = [(name, ()) for name in roots], set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in found:
            continue
        found.add((name, extras))
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # of another system or Python
            continue
        for line in lines:
            of_extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
            if of_extra is None or of_extra[1] in extras:
                name, more = re.match(r"([\w.-]+)\s*(?:\[([^\]]*)\])?", line).groups()
                todo.append((name, tuple(re.split(r"\s*,\s*", more)) if more else ()))
    return {re.sub("[-_.]+", "-", name).lower() for name, _ in found}


class Environment:
    """A folder as the reader's: tools/, README.md, photographs; and a Python that has what was installed, and no more."""

    def __init__(self, folder, weights):
        self.folder, self.weights = folder, weights
        (folder / "tools").symlink_to(CHECKOUT / "tools")
        (folder / "README.md").symlink_to(CHECKOUT / "README.md")
        python = write(folder / ".venv/bin/python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'.encode())
        python.chmod(0o755)
        write(folder / ".venv/hide/sitecustomize.py", HIDE.encode())
        self.hidden = folder / ".venv" / "hidden"
        path = os.pathsep.join([str(python.parent), os.environ["PATH"]])
        hide = {"PYTHONPATH": str(self.hidden.parent / "hide"), "HIDDEN_MODULES": str(self.hidden)}
        self.variables = {**os.environ, **hide, "PATH": path, "TMPDIR": str(folder)}
        self.install()

    def install(self, *extras):
        """Makes importable what comes with tfpipe, "", and with its extras."""
        self.allow(set().union(*(requirements()[extra] for extra in ("", *extras))))

    def allow(self, roots):
        installed, wanted = importlib.metadata.packages_distributions(), brought(roots)
        names = {module: {re.sub("[-_.]+", "-", name).lower() for name in found} for module, found in installed.items()}
        hidden = [module for module, found in names.items() if not found & wanted and module != "tfpipe"]
        self.hidden.write_text("\n".join(hidden))

    def run(self, *command):
        done = subprocess.run(command, cwd=self.folder, env=self.variables, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def run_line(self, line):
        """Runs a line of the shell."""
        if match := re.match(r"pip install --quiet --editable '\.\[([\w,]+)\]'", line):
            self.install(*match[1].split(","))
        elif line.startswith("tools/demo_page.py"):
            self._open_page(line.partition("#")[0])
        elif not line.startswith("source .venv/bin/activate"):
            self.run(
                "bash",
                "-ec",
                line.replace("--weights=imagenet", f"--weights={shlex.quote(str(self.weights))} --image_size={SIDE}"),
            )

    def _open_page(self, line):
        command, pipe = ["bash", "-ec", f"exec {line} --port=0"], subprocess.PIPE
        process = subprocess.Popen(command, cwd=self.folder, env=self.variables, stdout=pipe, stderr=pipe, text=True)
        try:
            url = process.stdout.readline().split(" ")[0]
            assert url.startswith("http://127.0.0.1:"), process.communicate(timeout=60)
            with urllib.request.urlopen(url) as answer:  # noqa: S310
                assert answer.status == 200
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader's folder")
    for class_index, (name, class_name) in enumerate(zip(("bird", "cat", "dog"), CLASS_NAMES, strict=True)):
        for index in range(12):
            write(folder / "photos" / name / f"{index}.jpg", colour_picture(class_name, 100 * class_index + index, (60, 40)))
    write(folder / "new_photos" / "1.jpg", colour_picture(CLASS_NAMES[0], 400))
    write(folder / "new_photos" / "2.png", colour_picture(CLASS_NAMES[1], 401, image_format="PNG"))
    weights = os.path.join(os.environ.get("TFPIPE_TEST_DATA", ""), VGG16)
    if not os.path.exists(weights):
        import keras

        weights = folder / "vgg16.weights.h5"
        keras.applications.VGG16(include_top=False, weights=None).save_weights(weights)
    return Environment(folder, weights)


def test_the_first_block_names_scripts_that_are_there():
    lines = [line.partition("#")[0].split() for line in blocks("sh")[0].splitlines()]
    assert lines == [
        ["bash", "tools/demo.sh"],
        ["bash", "tools/test.sh"],
    ]  # the second one runs this; tests/test_demo.py the first
    for _, script in lines:
        subprocess.run(["bash", "-n", CHECKOUT / script], check=True)


def test_every_block_is_run_here():
    text = (CHECKOUT / "README.md").read_text("utf-8")
    assert (len(blocks("sh")), len(blocks("python"))) == (2, 4)
    assert text.count("```") == 2 * 6


def test_what_is_not_installed_cannot_be_imported(environment):
    names = ["numpy", "tensorflow", "keras", "onnx", "tf2onnx", "gradio", "tensorflow_datasets", "pytest"]
    script = f"from importlib.util import find_spec\nprint(*(name for name in {names} if find_spec(name)))"
    environment.install()
    assert environment.run("python3", "-c", script).split() == names[:3]
    environment.install("onnx", "page")
    assert environment.run("python3", "-c", script).split() == names[:6]


def test_the_blocks_run_as_printed(environment):
    environment.install()
    for line in blocks("sh")[1].splitlines():
        environment.run_line(line)
    assert (environment.folder / "predictions.csv").read_text().count("\n") == 3

    library = [block for block in blocks("python") if "import tensorflow" not in block]
    named = 'backbone="vgg16", '
    script = "\n".join(library).replace(named, f"{named}weights={str(environment.weights)!r}, image_size=({SIDE}, {SIDE}), ")
    environment.run("python3", "-c", script)


def test_the_exported_files_need_tensorflow_alone(environment):
    (block,) = [block for block in blocks("python") if "import tensorflow" in block]
    environment.allow({"tensorflow"})
    with open(environment.hidden, "a") as file:
        file.write("\ntfpipe")
    one, two, text = environment.run("python3", "-c", block).splitlines()
    assert text == "b'' b'' 0.0 False"
    for row in (one, two):
        assert re.fullmatch(r"(b'\w+') \1 0\.\d+ True|(b'\w+') \2 1\.0 True", row)

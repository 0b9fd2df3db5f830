"""The blocks of README.md and docs/, run as printed: in order, in one folder, with nothing importable but what they install.

What is not as printed: ImageNet's weights are a file here, images have 32 pixels a side, a fortieth
of the time, and small networks train for 2 epochs, not 8. A block that cannot run has `<!-- not
run: reason -->` before it; the names in it are checked by tests/test_documentation.py. Commands and
pages run in forks of one process that has imported TensorFlow, as its import takes longer than most
of them.
"""

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import CHECKOUT, write
from documentation_fixtures import blocks, pages, present
from test_architecture import requirements
from transfer_fixtures import CLASS_NAMES, colour_image

pytestmark = pytest.mark.tf

SIDE = 32
VGG16 = "weights/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
PAGES = ("README.md", *(f"docs/how-to/{name}.md" for name in ("training", "evaluation", "export", "prediction", "reading")))
TUTORIAL = "docs/tutorial.md"
ALONE = "import tensorflow as tf"  # begins the block that needs TensorFlow and nothing else

HIDE = """
import importlib.machinery, os, pathlib
hidden = set(pathlib.Path(os.environ["HIDDEN_MODULES"]).read_text().split())
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *place: None if name in hidden else find(name, *place)
"""

RUN_ALL = """
import json, os, runpy, sys, traceback
import keras, tensorflow, tfpipe
jobs, weights = json.load(open(sys.argv[1])), sys.argv[2]
for index, job in enumerate(jobs):
    child = os.fork()
    if child:
        job["status"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        continue
    log = os.open(f"{index}.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1), os.dup2(log, 2)
    status = 1
    try:
        if not os.path.exists(weights):
            keras.applications.VGG16(include_top=False, weights=None).save_weights(weights)
        if job["argv"]:
            sys.argv = job["argv"]
            runpy.run_module("tfpipe", run_name="__main__", alter_sys=True)
        exec(compile(job["source"], job["name"], "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)
json.dump(jobs, open(sys.argv[1], "w"))
"""


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
    """A folder as the reader's: README.md, photographs; and a Python that has what was installed, and no more."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "README.md").symlink_to(CHECKOUT / "README.md")
        write(folder / ".venv/hide/sitecustomize.py", HIDE.encode())
        self.hidden = folder / ".venv" / "hidden"
        path = os.pathsep.join([str(self.hidden.parent / "hide"), str(CHECKOUT)])
        self.variables = {**os.environ, "PYTHONPATH": path, "HIDDEN_MODULES": str(self.hidden), "TMPDIR": str(folder)}

    def install(self, *extras):
        """Makes importable what comes with tfpipe, and with its extras."""
        self.allow(set().union(*(requirements()[extra] for extra in ("", *extras))))

    def allow(self, roots):
        installed, wanted = importlib.metadata.packages_distributions(), brought(roots)
        names = {module: {re.sub("[-_.]+", "-", name).lower() for name in found} for module, found in installed.items()}
        hidden = [module for module, found in names.items() if not found & wanted and module != "tfpipe"]
        self.hidden.write_text("\n".join(hidden))

    def run(self, *arguments):
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, cwd=self.folder, env=self.variables, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader's folder")
    for class_index, (name, class_name) in enumerate(zip(("bird", "cat", "dog"), CLASS_NAMES, strict=True)):
        for index in range(12):
            write(folder / "photos" / name / f"{index}.jpg", colour_image(class_name, 100 * class_index + index, (60, 40)))
    write(folder / "new_photos" / "1.jpg", colour_image(CLASS_NAMES[0], 400))
    write(folder / "new_photos" / "2.png", colour_image(CLASS_NAMES[1], 401, image_format="PNG"))
    return Environment(folder)


def blocks_to_run():
    texts = present(pages())
    of_pages = {name: blocks(name, text) for name, text in texts.items()}
    return {name: [one for one in found if not one.not_run and one.language != "text"] for name, found in of_pages.items()}


def jobs_of(weights):
    """Commands of README.md one by one, then the Python of each notebook and each page."""
    found, size = blocks_to_run(), f"image_size=({SIDE}, {SIDE}), "
    for line in [block for block in found["README.md"] if block.language == "sh"][1].text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["tfpipe"]:
            argv = [f"--weights={weights}" if word == "--weights=imagenet" else word for word in words]
            yield {"name": line, "argv": argv + [f"--image_size={SIDE}"] * (argv != words), "source": ""}
    for path in sorted((CHECKOUT / "docs/notebooks").glob("*.ipynb")):
        cells = [cell["source"] for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
        source = "\n".join("".join(lines) for lines in cells).replace("epochs=8", "epochs=2")
        yield {"name": path.name, "argv": [], "source": source}
    for name in (*PAGES, TUTORIAL):
        sources = [block.text for block in found[name] if block.language == "python" and not block.text.startswith(ALONE)]
        source = "\n".join(sources).replace('backbone="vgg16", ', f'backbone="vgg16", weights={str(weights)!r}, {size}')
        source = source.replace("epochs=8", "epochs=2")
        yield {"name": name, "argv": [], "source": source}


@pytest.fixture(scope="module")
def done(environment):
    """(name, exit status, what it printed) of each job."""
    environment.install()
    weights = os.path.join(os.environ.get("TFPIPE_TEST_DATA", ""), VGG16)
    weights = weights if os.path.exists(weights) else environment.folder / "vgg16.weights.h5"
    jobs = environment.folder / "jobs.json"
    jobs.write_text(json.dumps(list(jobs_of(weights))))
    script = write(environment.folder / "run_all.py", RUN_ALL.encode())
    environment.run(script, jobs, weights)
    finished = json.loads(jobs.read_text())
    logs = [(environment.folder / f"{index}.log").read_text("utf-8", "replace") for index in range(len(finished))]
    return [(job["name"], job["status"], log) for job, log in zip(finished, logs, strict=True)]


def test_every_block_that_can_run_is_run_here():
    found = {name: [block.language for block in of_page] for name, of_page in blocks_to_run().items() if of_page}
    assert set(found) - {"CONTRIBUTING.md"} == {*PAGES, TUTORIAL}
    assert found["README.md"] == ["sh", "sh", "python"]
    others = [languages for name, languages in found.items() if name not in ("README.md", "CONTRIBUTING.md")]
    assert {language for languages in others for language in languages} == {"python"}


def test_what_is_not_installed_cannot_be_imported(environment):
    names = ["numpy", "tensorflow", "keras", "onnx", "tf2onnx", "gradio", "tensorflow_datasets", "pytest"]
    script = f"from importlib.util import find_spec\nprint(*(name for name in {names} if find_spec(name)))"
    environment.install()
    assert environment.run("-c", script).split() == names[:3]
    environment.install("onnx", "page")
    assert environment.run("-c", script).split() == names[:6]


def test_the_blocks_run_as_printed(environment, done):
    failed = [f"{name}: status {status}\n{log[-3000:]}" for name, status, log in done if status != 0]
    assert not failed, "\n\n".join(failed)
    assert [name.split()[:2] for name, _, _ in done[:6]] == [
        ["tfpipe", command] for command in ("build", "verify", "train", "evaluate", "export", "predict")
    ]
    assert (environment.folder / "predictions.csv").read_text().count("\n") == 3
    assert (environment.folder / "eval/report.html").exists()
    assert len(done) == 6 + 3 + len(PAGES) + 1
    assert "digit 0" in done[-1][2].splitlines()[0]


def test_the_exported_files_need_tensorflow_alone(environment, done):
    (block,) = [block.text for block in blocks_to_run()["docs/how-to/export.md"] if block.text.startswith(ALONE)]
    environment.allow({"tensorflow"})
    with open(environment.hidden, "a") as file:
        file.write("\ntfpipe")
    one, two, text = environment.run("-c", block).splitlines()
    assert text == "b'' b'' 0.0 False"
    for row in (one, two):
        assert re.fullmatch(r"(b'\w+') \1 0\.\d+ True|(b'\w+') \2 1\.0 True", row)

"""The shape of the house: floors, lazy door, names. Each check of the source is shown to be able to fail."""

import ast
import collections
import configparser
import functools
import importlib.metadata
import re
import resource
import subprocess
import sys

import pytest
from conftest import CHECKOUT

import tfpipe

PACKAGE = CHECKOUT / "tfpipe"
MOST_MODULES = 16

# A package may import those above it in this list, so that data flows down and no two import each
# other.
LAYERS = (
    *("start_up", "common", "records", "images", "listing", "building", "verification", "pipeline", "report", "networks"),
    *("models", "training", "evaluation", "formats", "exporting", "prediction", "page"),
)
FLOORS = {name: set(LAYERS[:index]) for index, name in enumerate(LAYERS)}
FLOORS |= {"commands": {"start_up", "common"}, "cli": {"common"}}
PEERS = {"ffcv", "nvidia", "simplejpeg", "torch", "torchvision"}  # of tools/benchmark.py, in environments of their own
USED_BY_TENSORFLOW = {"tensorboard"}  # holds tf.summary, and TensorFlow does not require it
PROGRAMS = {
    "build",
    "mkdocs",
    "mkdocs-material",
    "mkdocstrings",
    "moto",
    "mypy",
    "pytest-xdist",
    "ruff",
    "setuptools",
    "wheel",
}  # of the extras `test` and `docs`
TENSORFLOW_IMAGES = {
    *("graph_headers.py", "graph_bytes.py", "graph_others.py", "decoding.py", "decoders.py"),
    *("resizing.py", "placement.py", "sampling.py"),
}
NUMERIC = {"alignment.py"}  # NumPy is all it does, and it is imported where it is used
HEAVY = {"tensorflow", "keras", "numpy", "h5py", "PIL", "tensorflow_datasets"}


def module_name(path):
    return ".".join(path.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__")


def imports(source, *, top_level_only=False):
    """Modules that a source imports by name, `from a import b` as both a and a.b."""
    tree = ast.parse(source)
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def floors_of(source):
    """Floors that a source imports from, also through the package's own names: tfpipe.dataset is the pipeline's."""
    names = imports(source)
    taken = {name.split(".")[1] for name in names if name.startswith("tfpipe.")}
    if "tfpipe" in names:
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
        taken |= {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "tfpipe"}
    return {tfpipe._HOMES[name].split(".")[1] if name in tfpipe._HOMES else name for name in taken} & set(FLOORS)


def sources():
    files = {path: path.read_text("utf-8") for path in PACKAGE.rglob("*.py")}
    assert len(files) > 20
    return files


def wrong_floors(files):
    return {
        str(path): upward
        for path, source in files.items()
        if (floor := path.relative_to(PACKAGE).parts[0].removesuffix(".py")) in FLOORS
        if (upward := floors_of(source) - FLOORS[floor] - {floor})
    }


def test_imports_go_down():
    assert wrong_floors(sources()) == {}


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("records/x.py", "from tfpipe.pipeline import loader"),
        ("records/x.py", "from tfpipe import dataset"),
        ("records/x.py", "import tfpipe\ndata = tfpipe.dataset('shards/', 'test')"),
        ("building/x.py", "def f():\n    import tfpipe.pipeline.reading"),
        ("commands.py", "from tfpipe import pipeline"),
        ("verification/x.py", "from tfpipe.pipeline import replaying"),
        ("pipeline/x.py", "from tfpipe.report import sheets"),
        ("commands.py", "from tfpipe.building import build"),
        ("cli.py", "from tfpipe.building import build"),
    ],
)
def test_the_check_of_floors_can_fail(file, source):
    assert wrong_floors({PACKAGE / file: source})


def test_what_uses_models_does_not_import_training():
    users = [path for path in sources() if {"evaluation", "formats", "exporting", "prediction", "page"} & set(path.parts)]
    assert len(users) > 10
    assert not [str(path) for path in users if "training" in floors_of(path.read_text("utf-8"))]
    assert "training" in floors_of("from tfpipe.training import runs")


def test_no_package_is_too_large_to_overlook():
    counts = collections.Counter(path.parent.name for path in sources() if path.stem != "__init__")
    assert {name: count for name, count in counts.items() if count > MOST_MODULES} == {}
    assert len(counts) > 10


def cycle(graph):
    """Modules of one import cycle, or []."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        path.append(module)
        for other in sorted(graph.get(module, ())):
            if found := visit(other):
                return found
        done.add(path.pop())
        return []

    return next((found for module in sorted(graph) if (found := visit(module))), [])


def test_no_import_cycle():
    names = {module_name(path): imports(source) for path, source in sources().items() if path.name != "__init__.py"}
    graph = {name: {other for other in found if other in names and other != name} for name, found in names.items()}
    assert sum(map(len, graph.values())) > 20
    assert cycle(graph) == []


def test_the_check_of_cycles_can_fail():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def test_the_lower_floors_import_nothing_heavy_at_their_top():
    heavy = {
        str(path): found
        for path, source in sources().items()
        if path.relative_to(PACKAGE).parts[0] in ("start_up.py", "commands.py", "cli.py", *LAYERS[1 : LAYERS.index("pipeline")])
        and path.name not in {*TENSORFLOW_IMAGES, *NUMERIC}
        if (found := {name.split(".")[0] for name in imports(source, top_level_only=True)} & HEAVY)
    }
    assert heavy == {}
    assert {name.split(".")[0] for name in imports("import numpy as np\nfrom PIL import Image", top_level_only=True)} & HEAVY


def loaded_by(statement):
    code = f"import sys; {statement}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_tfpipe_loads_nothing_heavy():
    assert not loaded_by("import tfpipe") & HEAVY


def test_the_check_of_loaded_modules_can_fail():
    assert "numpy" in loaded_by("import tfpipe, numpy")


@pytest.mark.parametrize("name", ["tools.build_tfrecords", "tools.inspect_tfrecords"])
def test_the_commands_of_the_lower_floors_load_no_tensorflow(name):
    assert not loaded_by(f"import {name}") & {"tensorflow", "keras", "tensorflow_datasets"}


def processor_seconds(code):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@functools.cache
def bare_seconds():
    return min(processor_seconds("pass") for _ in range(5))


def takes_less_than(seconds, code, repetitions=7):
    """Whether the fastest of several runs takes less than `seconds` more than a bare interpreter.

    The processor's time, and the least of several runs, keep the neighbours' noise out; the first
    that is fast enough decides.
    """
    return any(processor_seconds(code) - bare_seconds() < seconds for _ in range(repetitions))


def test_importing_tfpipe_takes_little():
    assert takes_less_than(0.05, "import tfpipe")  # which is the promise


def test_the_check_of_the_time_can_fail():
    assert not takes_less_than(0.05, "import time\nwhile time.process_time() < 0.2: pass", 2)


def test_exported_names_exist_and_are_pinned():
    assert tfpipe.__all__ == dir(tfpipe)
    assert tfpipe.__all__ == [
        "Augmentation",
        "Comparison",
        "DataError",
        "Evaluation",
        "Export",
        "FoldRuns",
        "Manifest",
        "Model",
        "Recipe",
        "RejectedImage",
        "Run",
        "Summary",
        "__version__",
        "augment_image",
        "build_tfrecords",
        "class_weights",
        "compare",
        "dataset",
        "decode_image",
        "describe",
        "evaluate",
        "evaluate_folds",
        "export",
        "grpc_request",
        "load",
        "load_frozen",
        "load_manifest",
        "parse_example",
        "predict",
        "replay",
        "resize_image",
        "rest_request",
        "train",
        "train_folds",
        "verify",
    ]
    assert all(getattr(tfpipe, name) is not None for name in tfpipe.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tfpipe.nothing  # noqa: B018


def test_type_checkers_see_the_same_names():
    source = (PACKAGE / "__init__.py").read_text("utf-8")
    (block,) = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    seen = {node.names[0].name: node.module for node in block.body if isinstance(node, ast.ImportFrom)}
    assert seen.pop("manifest") == "tfpipe.records"  # load_manifest is its load
    assert {**seen, "load_manifest": "tfpipe.records.manifest"} == tfpipe._HOMES


def test_no_exported_name_is_a_modules_name():
    # Importing a submodule sets it on the package, in place of a function of the same name.
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert "pipeline" in modules
    assert not modules & set(tfpipe.__all__)


def unseen_prints(source):
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return [node.lineno for node in calls if node.func.id == "print"]


def test_the_library_never_prints():
    assert {str(path): lines for path, source in sources().items() if (lines := unseen_prints(source))} == {}
    assert unseen_prints("print(1)")


def test_commands_are_listed_where_they_are_installed():
    listed = (CHECKOUT / "setup.cfg").read_text("utf-8")
    tools = {path.stem for path in (CHECKOUT / "tools").glob("*.py")} - {"__init__", "demo", "benchmark"}
    assert tools
    for tool in tools:
        assert f"tfpipe-{tool.replace('_', '-')} = tfpipe.tools.{tool}:command" in listed
        assert (CHECKOUT / "tools" / f"{tool}.py").stat().st_mode & 0o111, f"{tool} is not executable"


def test_packages_are_listed_where_they_are_installed():
    listed = (CHECKOUT / "setup.cfg").read_text("utf-8").split("packages =")[1].split("package_dir")[0].split()
    packages = {module_name(path) for path in PACKAGE.rglob("__init__.py")}
    packages |= {f"tfpipe.{module_name(path)}" for path in (CHECKOUT / "tools").rglob("__init__.py")}
    assert {"tfpipe.records", "tfpipe.tools", "tfpipe.tools.benchmarks"} <= packages
    assert sorted(listed) == sorted(packages)


def requirements():
    """Distributions that setup.cfg requires: of the package, under "", and of each extra."""
    config = configparser.ConfigParser()
    config.read(CHECKOUT / "setup.cfg")
    listed = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    return {
        extra: {re.match(r"[\w.-]+", line)[0] for line in lines.split("\n") if line} - {"tfpipe"}
        for extra, lines in listed.items()
    }


def third_party(folders):
    """Top-level modules that files import, also by `importorskip("name")` and the like, without the standard library's."""
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert len(files) > 10
    found = set().union(*(imports(source) | imports_by_name(source) for source in (path.read_text("utf-8") for path in files)))
    own = {"tfpipe", "tools", *(path.stem for path in files)}
    return {name.split(".")[0] for name in found} - own - set(sys.stdlib_module_names)


def imports_by_name(source):
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args]
    functions = {"import_module", "importorskip", "_import", "find_package"}
    words = [call.args[0] for call in calls if ast.unparse(call.func).rpartition(".")[2] in functions]
    return {word.value for word in words if isinstance(word, ast.Constant)}


def distributions(modules):
    """Distributions that modules are of, by module; several where they share a namespace."""
    installed = importlib.metadata.packages_distributions()
    return {name: {found.lower().replace("_", "-") for found in installed.get(name, [name])} for name in modules}


def test_what_is_imported_is_required_and_what_is_required_is_imported():
    required = requirements()
    tests = required.pop("test")
    ours = distributions(third_party([PACKAGE, CHECKOUT / "tools"]) - PEERS)
    theirs = distributions(third_party([CHECKOUT / "examples", CHECKOUT / "tests"]))
    known = set().union(*required.values())
    assert {name for name, found in ours.items() if not found & known} == set()
    assert {name for name, found in theirs.items() if not found & (known | tests)} == set()
    assert known - USED_BY_TENSORFLOW - PROGRAMS - set().union(*ours.values()) == set()
    assert tests - PROGRAMS - set().union(*theirs.values()) == set()


@pytest.mark.tf
def test_tensorboard_is_used_by_tensorflow():
    used = "import sys, tensorflow as tf; assert 'tensorboard' not in sys.modules; tf.summary.scalar('a', 1.0, 0)"
    assert "tensorboard" in loaded_by(used)


def test_the_check_of_requirements_sees_imports_by_name():
    source = """def f():\n    pytest.importorskip("a.b"); _import("c"); importlib.import_module("d"); _import(name); g("e")"""
    assert imports_by_name(source) == {"a.b", "c", "d"}

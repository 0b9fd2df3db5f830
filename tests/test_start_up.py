"""The start of commands: help and wrong words at once, errors before TensorFlow is loaded, none of its lines among theirs."""

import os
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest
from conftest import CHECKOUT, make_image, write
from test_architecture import HEAVY, takes_less_than
from test_commands import TOOLS

import tfpipe

WITHOUT = {*HEAVY, "scipy", "sklearn", "matplotlib", "gradio"}
COMMAND = """
import sys
from tools.{tool} import command
sys.argv = ["{tool}", *{arguments}]
try:
    command()
except SystemExit as ended:
    print(ended.code, *sorted(sys.modules.keys() & {modules}), file=sys.stderr)
"""


def child(code, **environment):
    merged = {**os.environ, **environment}
    kept = {name: value for name, value in merged.items() if value is not None}
    return subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, env=kept, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("tool", TOOLS)
def test_help_version_and_wrong_words_need_nothing_heavy(tool):
    for argument, code in {"--help": 0, "--version": 0, "--nonsense=1": 2, "--seed=x": 2}.items():
        done = child(COMMAND.format(tool=tool, arguments=[argument], modules=WITHOUT))
        assert done.stderr.splitlines()[-1] == str(code), done.stderr
        if argument == "--version":
            assert done.stdout == f"tfpipe {tfpipe.__version__}\n"


def test_the_check_of_what_is_heavy_can_fail():
    done = child("import numpy" + COMMAND.format(tool="train", arguments=["--help"], modules=WITHOUT))
    assert done.stderr.splitlines()[-1] == "0 numpy"


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("arguments", [["--help"], ["--nonsense"], []])
def test_help_and_usage_take_little(tool, arguments):
    if tool == "demo" and not arguments:
        pytest.skip("the demo needs no flags")
    code = COMMAND.format(tool=tool, arguments=arguments, modules=set())
    quiet = f"import os; os.dup2(os.open(os.devnull, os.O_WRONLY), 1); os.dup2(1, 2)\n{code}"
    # The promise is half a second over a bare interpreter; the processor's time, as for `import
    # tfpipe`.
    assert takes_less_than(0.5, quiet, 3)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("places")
    for index in range(12):
        write(root / "photos" / ("cat" if index % 2 else "dog") / f"{index}.jpg", make_image(index))
    tfpipe.build_tfrecords(root / "photos", root / "data", splits={"train": 0.5, "test": 0.5}, workers=1, progress=False)
    write(root / "file", b"")
    write(root / "other/file", b"")
    write(root / "model.tflite", b"not looked into")
    write(root / "text.keras", b"text")
    write(root / "old/SHA256SUMS", b"0  preprocessing.json\n")
    return root


TRAIN = ["--data={0}/data", "--output={0}/run"]
EVALUATE = ["--model={0}/model.tflite", "--data={0}/data", "--output={0}/eval"]
PREDICT = ["--model={0}/model.tflite", "--input={0}/photos", "--output={0}/out.csv"]
WRONG = [
    (
        "train",
        ["--data={0}/nowhere", "--output={0}/run"],
        "{0}/nowhere/manifest.json: no manifest here: there is no",
    ),
    (
        "train",
        ["--data={0}/photos", "--output={0}/run"],
        "a folder of images, which are packed into one first: tfpipe build",
    ),
    ("train", [*TRAIN, "--image_size=96,96"], "--image_size must be SIDE or HEIGHTxWIDTH, as 224 or 240x320 (got '96,96')"),
    ("train", [*TRAIN, "--image_size=8"], "--image_size 8x8 is too small for vgg16"),
    ("train", [*TRAIN, "--backbone=resnet18"], "--backbone must be one of vgg16"),
    ("train", [*TRAIN, "--weights={0}/none.h5"], "--weights: {0}/none.h5: no such file"),
    ("train", [*TRAIN, "--backbone=lenet"], "there are no ImageNet weights for lenet"),
    ("train", [*TRAIN, "--grey"], "backbone vgg16 takes three channels"),
    ("train", [*TRAIN, "--batch_size=0"], "--batch_size must be an integer"),
    ("train", [*TRAIN, "--mode=fintune"], "--mode must be one of auto, scratch"),
    ("train", [*TRAIN, "--hidden=a"], "--hidden: 'a' is not a whole number"),
    ("train", [*TRAIN, "--learning_rate=fast"], "--learning_rate: 'fast' is not a number"),
    ("train", [*TRAIN, "--augment=much"], "--augment must be"),
    ("train", [*TRAIN, "--mode=frozen", "--views=2"], "--views is of no effect in mode frozen"),
    ("train", ["--data={0}/data", "--output={0}/file"], "{0}/file: a file; a folder is needed"),
    ("train", ["--data={0}/data", "--output={0}/other"], "{0}/other: has other files (file) and no run"),
    ("evaluate", ["--model={0}/nothing", *EVALUATE[1:]], "{0}/nothing: no such model"),
    ("evaluate", ["--model={0}/text.keras", *EVALUATE[1:]], "it is not a .keras file, or is truncated"),
    ("evaluate", [EVALUATE[0], "--data={0}/photos", EVALUATE[2]], "a folder of images"),
    ("evaluate", [*EVALUATE, "--split=tset"], "--split must be one of train, test (got 'tset')"),
    ("evaluate", [*EVALUATE[:2], "--output={0}/file/eval"], "{0}/file: a file; a folder is needed"),
    ("evaluate", [*EVALUATE, "--shard=0/2", "--num_readers=2"], "--shard and --num_readers exclude each other"),
    (
        "export_model",
        ["--model={0}/text.keras", "--output={0}/old"],
        "{0}/old: holds an export; replace it with --overwrite=True, or",
    ),
    ("export_model", ["--model={0}/nothing", "--output={0}/new"], "{0}/nothing: no such file"),
    ("export_model", ["--model={0}/other", "--output={0}/new"], "{0}/other: no model.keras in this folder"),
    (
        "export_model",
        ["--model={0}/other", "--output={0}/new", "--checkpoint=x.keras"],
        "x.keras: no such file; checkpoint",
    ),
    (
        "export_model",
        ["--model={0}/text.keras", "--output={0}/new", "--formats=pb,png"],
        "--formats must be some of saved_model",
    ),
    ("export_model", ["--model={0}/text.keras", "--output={0}/new", "--image_size=96,96"], "--image_size must be SIDE or"),
    ("predict", ["--model={0}/nothing", *PREDICT[1:]], "{0}/nothing: no such model"),
    ("predict", [PREDICT[0], "--input={0}/none.jpg", PREDICT[2]], "{0}/none.jpg: no such file or folder"),
    ("predict", [*PREDICT[:2], "--output={0}/none/out.csv"], "{0}/none/out.csv: there is no folder {0}/none to write to"),
    ("predict", [*PREDICT, "--format=jsonl", "--columns=label"], "--columns=label is for CSV"),
    ("predict", [*PREDICT, "--split=test"], "--split='test' needs a data set"),
    ("predict", [PREDICT[0], "--input={0}/data", PREDICT[2]], "{0}/data: which split? It has train, test"),
    ("demo_page", ["--model={0}/nothing", "--port=0"], "{0}/nothing: no such model"),
    ("demo_page", ["--model={0}/model.tflite", "--data={0}/photos", "--port=0"], "a folder of images"),
    ("inspect_tfrecords", ["show", "{0}/data", "{0}/sheet.png", "--augment=much"], "--augment must be"),
    ("inspect_tfrecords", ["show", "{0}/photos", "{0}/sheet.png", "--augment=light"], "a folder of images"),
    ("inspect_tfrecords", ["show", "{0}/data", "{0}/sheet.png", "--augment=light", "--split=x"], "--split must be one of"),
]


@pytest.mark.parametrize(("tool", "arguments", "message"), WRONG)
def test_what_is_wrong_is_reported_before_tensorflow_is_loaded(places, tool, arguments, message):
    if tool == "demo_page":
        _ = find_spec("gradio") or pytest.skip("gradio is not installed")  # importing it takes seconds
    given = [argument.format(places) for argument in arguments]
    before = sorted(places.rglob("*"))
    # None in its place: who imports it fails, with another message.
    without = "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None"
    done = child(without + COMMAND.format(tool=tool, arguments=given, modules=set()))
    assert message.format(places) in done.stderr.partition("error: ")[2]
    assert done.stderr.split()[-1] in ("1", "2")
    assert "Traceback" not in done.stderr
    assert "[Errno" not in done.stderr
    assert sorted(places.rglob("*")) == before


LIKE_A_COMMAND = """
'''Help.'''
import sys
from tfpipe import commands

def main(arguments):
    print("before", file=sys.stderr, flush=True)
    import tensorflow as tf
    tf.constant(1) + 1
    print("after", file=sys.stderr, flush=True)
    print(*sorted(sys.modules.keys() & {"matplotlib", "pandas", "sklearn"}))
    import matplotlib, sklearn  # what a command uses is there
    print(matplotlib.__name__, sklearn.__name__)

commands.run(main, __name__)
"""


@pytest.mark.tf
def test_none_of_tensorflows_start_stands_among_a_commands_words():
    done = child(LIKE_A_COMMAND, TF_CPP_MIN_LOG_LEVEL=None)
    assert (done.returncode, done.stderr) == (0, "before\nafter\n")
    assert done.stdout == "\nmatplotlib sklearn\n"  # Keras loaded none of the packages that commands do not give it


@pytest.mark.tf
def test_who_asks_for_tensorflows_words_has_them():
    done = child(LIKE_A_COMMAND, TF_CPP_MIN_LOG_LEVEL="0")
    assert "I0000" in done.stderr.partition("after")[0]


@pytest.mark.tf
@pytest.mark.parametrize("level", [None, "3"])
def test_the_last_words_of_tensorflow_are_shown(level):
    done = child(LIKE_A_COMMAND, TF_CPP_MIN_LOG_LEVEL=level, TF_XLA_FLAGS="--nonsense")
    assert done.returncode
    assert "Unknown flag in TF_XLA_FLAGS: --nonsense" in done.stderr  # fatal: TensorFlow ends the process while it is imported
    assert "after" not in done.stderr
    assert "I0000" not in done.stderr


GROWTH = "TF_FORCE_GPU_ALLOW_GROWTH"
SAYS = """
'''Help.'''
import os
from tfpipe import commands
commands.run(lambda _: print(os.environ["{name}"]), __name__)
"""


@pytest.mark.parametrize(("given", "expected"), [(None, "true"), ("false", "false")])
def test_a_commands_memory_on_a_gpu_grows_unless_its_user_reports_otherwise(given, expected):
    done = child(SAYS.format(name=GROWTH), **{GROWTH: given})
    assert (done.returncode, done.stdout) == (0, f"{expected}\n"), done.stderr


@pytest.mark.tf
def test_the_library_leaves_how_a_gpus_memory_grows_to_its_user():
    assert "None" in child(f"import os, tfpipe.pipeline.loader; print(os.environ.get('{GROWTH}'))", **{GROWTH: None}).stdout


TAKES = """
'''Help.'''
import ctypes, sys
from tfpipe import commands

def main(arguments):
    import tensorflow as tf
    assert "GPU:0" in tf.matmul(tf.ones((8, 8)), tf.ones((8, 8))).device
    cuda, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    cuda.cuInit(0)
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    cuda.cuCtxSetCurrent(context)
    assert cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
    print(free.value / total.value)

commands.run(main, __name__)
"""


@pytest.mark.tf
@pytest.mark.gpu
def test_a_command_leaves_a_gpus_memory_to_others():
    done = child(TAKES, **{GROWTH: None})
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.5  # by default nearly all would be taken; tests beside this one take little


def test_what_a_process_reports_when_it_aborts_is_shown():
    start = "import os; from tfpipe import start_up\nwith start_up._filtered(b'IWE'):"
    done = child(start + r" os.write(2, b'I0000 x\nF0000 y\nlast'); os.abort()")
    assert (done.returncode, done.stderr) == (-signal.SIGABRT, "F0000 y\nlast")

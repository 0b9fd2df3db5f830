"""The benchmark's own arithmetic, and that each input pipeline does the work that it is credited with."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import CHECKOUT, make_image, write

import tfpipe
from tfpipe.training.logs.run_log import RunLog
from tools.benchmarks import contenders, modes, overhead, planning, worker

WORKER = CHECKOUT / "tools" / "benchmarks" / "worker.py"


def test_contenders_alternate_and_the_first_round_is_not_counted():
    calls = []
    clock = iter(range(100, 200))

    def measure(item):
        calls.append(item)
        return next(clock)

    assert contenders.alternate({"a": "A", "b": "B"}, measure, 2) == {"a": [102, 104], "b": [103, 105]}
    assert calls == ["A", "B"] * 3


def test_ratios_are_made_within_rounds():
    # The machine was ten times slower in the last round: ratios of medians, or of minima, would say
    # something else.
    assert contenders.compared("tfpipe", [1.0, 2.0, 10.0], [2.0, 3.0, 40.0]) == "tfpipe is   2.00 x as fast (1.50 to 4.00)"


def test_every_contender_has_a_function_in_its_module():
    for name, module in contenders.MODULES.items():
        source = (WORKER.parent / f"{module}.py").read_text("utf-8")
        assert f"\ndef {name.replace('-', '_')}(task: Task)" in source


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_planner_is_measured_by_rows(tmp_path, capsys):
    images = [write(tmp_path / f"{index}.jpg", make_image(index)) for index in range(3)]
    planning.report(tmp_path, images, 5000, 1)
    found = re.search(
        r"^5000 rows of 3 images .* exit code 0\nplanner: peak (\d+) MiB .* (\d+) bytes a row\n", capsys.readouterr().out
    )
    assert int(found[1]) < 100
    assert int(found[2]) > 300
    assert tfpipe.load_manifest(tmp_path / "out").splits["train"].num_records == 5000


@pytest.mark.tf
def test_every_part_of_the_overhead_is_of_functions_that_there_are():
    for names in overhead._PARTS.values():
        for owner, name in map(overhead._find, names):
            assert callable(getattr(owner, name))


@pytest.mark.tf
def test_the_overhead_is_of_data_in_the_folder_that_it_is_started_in(monkeypatch, tmp_path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match=r"here/manifest\.json: no manifest here(?!: there is no such folder)"):
        overhead.measure(["train", "--data=here", "--output=run"])


def test_seconds_go_to_the_innermost_part(monkeypatch):
    monkeypatch.setattr(overhead.time, "process_time", iter([1, 3, 6, 10, 15, 21]).__next__)
    clock = overhead._Clock()
    clock.turn("Python")
    inner = clock.wrap(lambda: 7, "inner")
    outer = clock.wrap(lambda: inner(), "outer")
    assert outer() == 7
    clock.turn()
    assert clock.seconds == {"Python": 1, "everything else": 2 + 6, "outer": 3 + 5, "inner": 4}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--only=dali,nothing", "--only: no contender nothing; there are tfpipe-train, "),
        ("--peer_python=nothing=python3", "--peer_python: no contender nothing; there are tfpipe, tfdata, keras, ffcv, "),
        ("--peer_python=dali=/nowhere/python", "--peer_python: no interpreter /nowhere/python"),
        ("--num_images=100", "--num_images must be a multiple of 64 (got 100)"),
        ("--only=torch-extract", "--only: no contender torch-extract; there are tfpipe-train, "),
    ],
)
def test_wrong_words_exit_with_2_and_say_what_is_right(run_tool, flag, message):
    done = run_tool("benchmark", "input", flag, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {message}" in done.stderr


def test_a_peer_that_is_missing_is_skipped_and_reported(run_tool, tmp_path):
    bare = tmp_path / "bare"  # an interpreter without any package
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    write(tmp_path / "photos" / "a" / "1.JPG", make_image(1))
    arguments = ["--num_images=64", "--repetitions=1", "--only=simplejpeg-full,dali", f"--scratch={tmp_path}"]
    pythons = f"--peer_python=dali={bare}/bin/python,simplejpeg={bare}/bin/python"
    done = run_tool("benchmark", "input", f"--input={tmp_path}/photos", pythons, *arguments)
    assert "64 images a pass, 1 different (your photos)" in done.stdout
    assert "skipped: dali: ModuleNotFoundError: No module named 'nvidia'; pip install nvidia-dali-cuda120, or" in done.stdout
    assert "skipped: simplejpeg-full: ModuleNotFoundError" in done.stdout
    assert "median" not in done.stdout


def test_a_pass_counts_from_opening_to_its_last_batch(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(worker.time, "perf_counter", lambda: clock[0])

    def batches():
        clock[0] += 2
        yield range(64)
        clock[0] += 3
        yield range(64)
        clock[0] += 8

    assert worker.measure(batches) == {"images": 128, "seconds": 5}


def stand_in(folder, script):
    """An interpreter that answers what a test wants."""
    path = write(folder / "python", f"#!/bin/sh\n{script}\n".encode())
    path.chmod(0o755)
    return str(path)


def test_a_contender_that_dies_is_given_up(tmp_path):
    python = stand_in(tmp_path, "echo no such luck >&2")
    with pytest.raises(contenders.GaveUp, match="dali: its process died: no such luck"):
        contenders.Worker("dali", python, {"photos": []}, tmp_path / "scratch")


def test_a_pass_with_too_few_images_is_not_a_measurement(tmp_path):
    answers = ("""echo '{"ready": true}'""", """echo '{"images": 63, "seconds": 1}'""")
    python = stand_in(tmp_path, f"read task; {answers[0]}; read go; {answers[1]}")
    contender = contenders.Worker("dali", python, {"photos": [""] * 64}, tmp_path / "scratch")
    with pytest.raises(contenders.GaveUp, match="dali: yielded 63 images of 64"):
        contender.measure()
    contender.close()


def test_made_photos_are_photos_and_too_few_are_repeated(tmp_path):
    from PIL import Image

    contenders.make_photos(tmp_path / "source", 2)
    write(tmp_path / "source" / "notes.txt", b"no image")
    assert contenders.gather_photos(tmp_path / "source", tmp_path / "photos", 5) == 2
    files = sorted((tmp_path / "photos").iterdir())
    assert len(files) == 5
    assert len({file.read_bytes() for file in files}) == 2
    with Image.open(files[0]) as image:
        assert (image.format, image.size) == ("JPEG", (500, 375))
    assert 20_000 < files[0].stat().st_size < 60_000


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("input")
    for index in range(3):
        write(folder / "source" / f"{index}.jpg", make_image(index, (300 + index, 260)))
    contenders.gather_photos(folder / "source", folder / "photos", 128)
    tfpipe.build_tfrecords({"train": folder / "photos"}, folder / "shards", layout="flat", num_shards=4, progress=False)
    photos = sorted(map(str, (folder / "photos").iterdir()))
    return {"photos": photos, "shards": str(folder / "shards"), "scratch": str(folder), "workers": 2, **contenders.BATCH}


# Fails in a contender's own process, as the benchmark runs it, on the second pass of a contender
# that works only once.
_CHECK = """
import json, sys
sys.path.insert(0, sys.argv[1])
import tensorflow_inputs, worker
task = worker.Task(**json.loads(sys.stdin.readline()))
found = {}
for name in sys.argv[2:]:
    open_pass = getattr(tensorflow_inputs, name)(task)
    found[name] = [[(batch.dtype.name, *batch.shape) for batch in open_pass()] for _ in range(2)]
print(json.dumps(found))
"""


@pytest.mark.tf
def test_contenders_of_tensorflow_yield_every_image_in_every_pass(task, thinned):
    names = [name for kind in ("training", "evaluation") for name in contenders.CONTENDERS[kind]]
    names = [name for name in names if contenders.MODULES[name] == "tensorflow_inputs"]
    assert len(names) == 11
    names = thinned(names, 4)
    command = [sys.executable, "-c", _CHECK, str(WORKER.parent), *(name.replace("-", "_") for name in names)]
    done = subprocess.run(command, cwd=CHECKOUT, input=json.dumps(task), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert len(found) == len(names)
    for name, passes in found.items():
        dtype = "float32" if name in {"tfdata_crop_colour", "tfdata_tutorial", "keras"} else "uint8"
        assert passes == [[[dtype, 64, 224, 224, 3]] * 2] * 2, name


@pytest.mark.tf
def test_speeds_are_measured_and_compared(run_tool, tmp_path):
    contenders.make_photos(tmp_path / "photos", 2)
    arguments = ["--num_images=64", "--repetitions=1", "--only=tfpipe-eval,tfdata-bilinear", f"--scratch={tmp_path}"]
    done = run_tool("benchmark", "input", f"--input={tmp_path}/photos", *arguments)
    title, ours, theirs = done.stdout.strip().splitlines()[-3:]
    assert title == "evaluation, images/s"
    assert ours.startswith("tfpipe-eval ")
    assert "x as fast" not in ours
    assert theirs.startswith("tfdata-bilinear ")
    assert "tfpipe-eval is " in theirs
    assert not [path for path in tmp_path.iterdir() if path.name != "photos"]


@pytest.mark.tf
@pytest.mark.parametrize("name", ["extract", pytest.param("predict", marks=pytest.mark.exhaustive(only=True))])
def test_extraction_and_prediction_are_measured(run_tool, tmp_path, name):
    from evaluation_fixtures import make_classifier

    for index in range(3):
        write(tmp_path / "photos" / f"{index}.jpg", make_image(index, (20, 30)))
    make_classifier().model.save(tmp_path / "model.keras")
    flags = {
        "extract": ["--backbone=lenet", "--weights=none", "--image_size=16"],
        "predict": [f"--model={tmp_path}/model.keras"],
    }
    arguments = [f"--input={tmp_path}/photos", "--num_images=64", "--repetitions=1", f"--scratch={tmp_path}"]
    done = run_tool("benchmark", name, f"--only=tfpipe-{name}", *flags[name], *arguments)
    title, ours = done.stdout.strip().splitlines()[-2:]
    assert title == {"extract": "extraction, images/s", "predict": "prediction, images/s"}[name]
    assert ours.startswith(f"tfpipe-{name} ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.keras", "photos"]


_FEATURES = """
import json, sys
sys.path.insert(0, sys.argv[1])
import extraction, numpy, worker
task = worker.Task(**json.loads(sys.stdin.readline()))
found = []
for contender in (extraction.tfpipe_extract_float32, extraction.keras_extract):
    open_pass = contender(task)
    first, second = (numpy.concatenate(list(open_pass())) for _ in range(2))
    assert (first == second).all()
    found.append((first.shape, sorted(first.sum(axis=(1, 2, 3)).tolist())))  # shards are in another order than folders
print(json.dumps(found))
"""


@pytest.mark.tf
def test_contenders_of_extraction_compute_the_same(tmp_path):
    import keras

    from tfpipe.networks import backbones

    weights = tmp_path / "lenet.weights.h5"
    keras.utils.set_random_seed(0)
    backbones.build("lenet", image_size=(16, 16)).network.save_weights(weights)
    # As large as the network wants them: the kinds of resizing differ.
    photos = sorted(str(write(tmp_path / "photos" / f"{index:02d}.jpg", make_image(index, (16, 16)))) for index in range(64))
    tfpipe.build_tfrecords({"train": tmp_path / "photos"}, tmp_path / "shards", layout="flat", progress=False)
    changes = {"photos": photos, "shards": str(tmp_path / "shards"), "scratch": str(tmp_path), "side": 16, "batch_size": 32}
    given = {**changes, "workers": 2, "backbone": "lenet", "weights": str(weights)}
    command = [sys.executable, "-c", _FEATURES, str(WORKER.parent)]
    done = subprocess.run(command, cwd=CHECKOUT, input=json.dumps(given), capture_output=True, text=True, check=True)
    (shape, ours), (their_shape, theirs) = json.loads(done.stdout)
    assert shape == their_shape == [64, 2, 2, 128]
    assert ours[-1] > 1.2 * ours[0] > 0
    assert ours == pytest.approx(theirs, rel=0.03)  # decoders differ by a level or two


@pytest.fixture
def shards(tmp_path):
    for index in range(16):
        write(tmp_path / "photos" / "ab"[index % 2] / f"{index}.jpg", make_image(index))
    splits = {"train": 0.75, "val": 0.25}
    tfpipe.build_tfrecords(tmp_path / "photos", tmp_path / "shards", layout="folders", splits=splits, progress=False)
    return tmp_path / "shards"


@pytest.mark.tf
def test_a_mode_is_measured(shards, tmp_path):
    options = {"data": str(shards), "backbone": "lenet", "weights": "none", "image_size": 16, "epochs": 1, "batch_size": 4}
    found = modes.measure("bottleneck", options, tmp_path / "out")
    assert 0 < found.seconds_per_epoch < found.seconds
    assert found.val_accuracy >= 0


@pytest.mark.tf
@pytest.mark.exhaustive(only=True)
def test_modes_are_measured_and_compared(run_tool, shards, tmp_path):
    arguments = ["--backbone=lenet", "--weights=none", "--image_size=16", "--epochs=2", f"--scratch={tmp_path}"]
    done = run_tool("benchmark", "modes", f"--data={shards}", "--only=bottleneck,frozen", *arguments)
    title, bottleneck, frozen, ratio = done.stdout.strip().splitlines()
    assert title.split() == ["s", "per", "epoch", "s", "in", "all", "peak", "GB", "val", "accuracy"]
    assert (bottleneck.split()[0], frozen.split()[0]) == ("bottleneck", "frozen")
    assert bottleneck.split()[-1] == frozen.split()[-1]  # the same head, trained on the same features
    assert ratio.startswith("bottleneck is ")
    assert ratio.endswith(" x as fast per epoch as frozen")
    assert not [path for path in tmp_path.iterdir() if path.name not in {"photos", "shards"}]


def test_an_epoch_of_a_mode_is_one_of_its_last_phase_and_not_the_first(tmp_path):
    summary = {"phases": [{"phase": "head"}, {"phase": "finetune"}], "peak_memory_bytes": 2, "val_accuracy": 0.5}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    epochs = [("head", 1, 70), ("head", 2, 80), ("finetune", 1, 50), ("finetune", 2, 4), ("finetune", 3, 1), ("finetune", 4, 3)]
    with RunLog(tmp_path, tensorboard=False) as run_log:
        for phase, epoch, seconds in epochs:
            run_log.epoch({"phase": phase, "epoch": epoch, "train_seconds": float(seconds)})
    assert modes.read(tmp_path, 9.0) == modes.Result(3.0, 9.0, 2, 0.5)


def test_modes_are_compared_by_their_epochs():
    results = {name: modes.Result(seconds, 1.0, 0, 0.9) for name, seconds in (("bottleneck", 0.5), ("frozen", 20), ("full", 1))}
    assert modes.table(results).splitlines()[-1] == "bottleneck is 40.0 x as fast per epoch as frozen"


@pytest.mark.tf
def test_a_mode_that_fails_gives_the_reason(tmp_path):
    with pytest.raises(RuntimeError, match=r"^frozen: .*nowhere"):
        modes.measure("frozen", {"data": str(tmp_path / "nowhere")}, tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_a_worker_keeps_as_many_cores_as_it_may_use():
    code = "import os, worker; worker.restrict(1); print(len(os.sched_getaffinity(0)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=WORKER.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"

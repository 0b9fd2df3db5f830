"""Which devices a training uses, by the words of --devices."""

import pytest

from tfpipe.training.preflight import choose_gpus, parse_devices

GPUS = ["GPU:0", "GPU:1", "GPU:2"]


@pytest.mark.parametrize(
    ("text", "there", "expected"),
    [
        ("auto", GPUS, GPUS),
        ("auto", [], []),
        ("all", GPUS, GPUS),
        ("one", GPUS, GPUS[:1]),
        ("one", [], []),
        ("CPU", GPUS, []),
        ("GPU:2", GPUS, ["GPU:2"]),
        ("GPU:2, GPU:0", GPUS, ["GPU:2", "GPU:0"]),
    ],
)
def test_the_devices_that_are_meant(text, there, expected):
    assert choose_gpus(parse_devices(text), there) == expected


@pytest.mark.parametrize(
    ("text", "there", "message"),
    [
        ("GPU:0,GPU:3", GPUS, "devices=GPU:3: there is no such device; there are CPU, GPU:0, GPU:1, GPU:2"),
        ("GPU:0", [], "devices=GPU:0: there is no such device; TensorFlow finds no GPU here: there is the CPU alone"),
        ("all", [], "devices=all: there is no such device; TensorFlow finds no GPU here: there is the CPU alone"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(text, there, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        choose_gpus(parse_devices(text), there)


@pytest.mark.parametrize("text", ["", "gpu", "GPU", "GPU:0,GPU:0", "GPU:0,CPU", "all,one", "GPU:x", "0"])
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match="devices must be one of auto, one, all, CPU, or names of GPUs as in GPU:0,GPU:2"):
        parse_devices(text)


@pytest.mark.tf
def test_the_command_reports_which_devices_there_are(tmp_path, run_tool):
    from transfer_fixtures import build_colours

    shards = build_colours(tmp_path, {"train": (2, 2, 2)})
    flags = [f"--data={shards}", f"--output={tmp_path / 'run'}", "--backbone=lenet", "--weights=none", "--devices=GPU:99"]
    done = run_tool("train", *flags, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --devices=GPU:99: there is no such device; ")
    assert not (tmp_path / "run").exists()

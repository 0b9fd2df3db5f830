"""OpenVINO files: the same answers for any batch, equal bytes, and a word for what is damaged."""

import importlib.util
import resource
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from evaluation_fixtures import CLASS_NAMES
from format_fixtures import SIZE, SPECIFICATION, as_function, draw_images, make_graph

from tfpipe.common.errors import DataError
from tfpipe.exporting import half_precision
from tfpipe.formats import opening, openvino_files

pytestmark = [
    pytest.mark.tf,
    pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="not installed: pip install 'tfpipe[openvino]'"),
]


@pytest.fixture(scope="module")
def graph():
    return make_graph()


@pytest.fixture(scope="module")
def path(graph, tmp_path_factory):
    file = tmp_path_factory.mktemp("größe 出") / "model.xml"
    openvino_files.write(graph, SPECIFICATION, file)
    return file


def copied(path, folder, name, change):
    """Both files under the same names elsewhere, one of them changed."""
    for file in (path, path.with_suffix(".bin")):
        data = bytearray(file.read_bytes())
        (folder / file.name).write_bytes(change(data) if file.name == name else data)
    return folder / path.name


def test_batches_of_any_size_at_once_get_the_answers_of_the_graph(graph, path):
    model, answer = openvino_files.open_openvino(path), as_function(graph)
    batches = [draw_images(number, number) for number in (2, 5, 1, 5, 3)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(model.predict, batches))
    for images, found in zip(batches, answers, strict=True):
        assert (found.dtype, found.shape) == (np.float32, (len(images), len(CLASS_NAMES)))
        assert np.abs(found - answer(images)).max() < 1e-6
    assert np.ptp(answer(draw_images(9)), axis=0).max() > 0.1  # answers differ, or the comparison would say nothing
    assert model.predict(draw_images(0)).shape == (0, len(CLASS_NAMES))
    assert (model.specification, model.image_size, model.sha256) == (SPECIFICATION, SIZE, "5" * 64)


def test_others_can_read_it(path):
    import openvino

    model = openvino.Core().read_model(path)
    assert [value.any_name for value in model.inputs] == ["image"]
    assert model.input("image").element_type == openvino.Type.u8
    assert str(model.input("image").partial_shape) == "[?,12,10,3]"
    assert "probabilities" in [value.any_name for value in model.outputs]


def test_equal_models_give_equal_bytes_and_halves_stay_halves(graph, path, tmp_path):
    openvino_files.write(graph, SPECIFICATION, tmp_path / "model.xml")
    for name in ("model.xml", "model.bin"):
        assert (tmp_path / name).read_bytes() == (path.parent / name).read_bytes()
    openvino_files.write(half_precision.store_half(graph), SPECIFICATION, tmp_path / "half.xml")
    assert (tmp_path / "half.bin").stat().st_size < 0.6 * path.with_suffix(".bin").stat().st_size
    images = draw_images(5)
    assert np.abs(opening.load(tmp_path / "half.xml").predict(images) - as_function(graph)(images)).max() < 1e-6


def test_a_full_disk_is_named_and_leaves_nothing(graph, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = len(graph.SerializeToString(deterministic=True))
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # which takes the graph, and not what is made of it
    try:
        with pytest.raises(OSError, match="No space left on device") as caught:
            openvino_files.write(graph, SPECIFICATION, tmp_path / "model.xml")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert caught.value.filename == str(tmp_path / "model.xml")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_damage_is_named_before_the_runtime_sees_it(path, tmp_path, name):
    def flipped(data):
        data[len(data) // 2] ^= 1
        return data

    for change in (flipped, lambda data: data[:-100], lambda _: b""):
        with pytest.raises(DataError, match=rf"model\.{name[-3:]}: not .*damaged") as caught:
            openvino_files.open_openvino(copied(path, tmp_path, name, change))
        assert caught.value.path == str(tmp_path / name)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        openvino_files.open_openvino(tmp_path / "model.xml")


def test_a_missing_package_is_named_with_the_way_to_install_it(graph, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    for run in (lambda: openvino_files.open_openvino(path), lambda: openvino_files.write(graph, SPECIFICATION, path)):
        with pytest.raises(ImportError, match=r"the package openvino .*pip install 'tfpipe\[openvino\]'"):
            run()

"""What an export consists of, that it is whole or absent, and that every wrong argument is said before anything is made."""

import hashlib
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CHECKOUT, make_image, write
from evaluation_fixtures import CLASS_NAMES, build_images, make_classifier
from export_fixtures import FORMATS, asked_here, exported
from PIL import Image

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.exporting import parity
from tfpipe.exporting.wrapping import wrap
from tfpipe.formats import opening, specifications
from tfpipe.images import headers
from tfpipe.networks import arithmetic
from tfpipe.networks.layers import Preprocessing

pytestmark = pytest.mark.tf

__all__ = ["asked_here", "exported"]  # fixtures

BAD = (b"", b"<html>", make_image(3)[:100], b"\xff\xd8\xff")


def turned(orientation, size=(31, 17)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return make_image(orientation, size, exif=exif)


FILES = [make_image(1), turned(6), make_image(2, (40, 9), "PNG"), turned(3), make_image(5, (8, 8)), turned(8)]


def evaluated(data):
    """What evaluation makes of a file."""
    image = tfpipe.decode_image(tf.constant(data), headers.read_header(data).orientation)
    return tfpipe.resize_image(image, (8, 8)).numpy()


# ---- G10


def test_g10_the_pixels_of_a_saved_model_are_those_that_evaluation_reads_from_records(exported, tmp_path):
    for number, data in enumerate(FILES):
        ending = "png" if data.startswith(b"\x89PNG") else "jpg"
        write(tmp_path / "photos" / "test" / "cat" / f"{number}.{ending}", data)
    tfpipe.build_tfrecords(tmp_path / "photos", tmp_path / "shards", layout="folders", workers=1, progress=False)
    (batch,) = tfpipe.dataset(tmp_path / "shards", "test", image_size=(8, 8), as_dict=True, batch_size=len(FILES))
    order = [int(key.decode().split("/")[-1].split(".")[0]) for key in batch["key"].numpy()]
    loaded = tf.saved_model.load(str(exported.folder / "saved_model"))
    files = tf.constant([FILES[number] for number in order])
    np.testing.assert_array_equal(loaded.signatures["pixels"](files)["image"], batch["image"])
    with arithmetic.exact():
        found = loaded.signatures["serving_default"](files)
    np.testing.assert_array_equal(found["probabilities"], exported.classifier.predict(batch["image"]))
    frozen = tfpipe.load_frozen(exported.folder / "frozen_bytes.pb")(image_bytes=files)
    np.testing.assert_array_equal(frozen["pixels"], batch["image"])
    np.testing.assert_array_equal(frozen["probabilities"], found["probabilities"])


def test_g10_an_evaluation_of_the_export_is_byte_for_byte_that_of_the_model(exported, tmp_path):
    build_images(tmp_path, {"test": dict.fromkeys(CLASS_NAMES, 5)})
    tables = []
    for name in ("", "saved_model", "frozen_image.pb", "frozen_bytes.pb"):
        model = tfpipe.load(exported.folder / name) if name else exported.classifier
        output = tmp_path / f"eval {len(tables)}"
        tfpipe.evaluate(model, tmp_path / "shards", "test", output, batch_size=7, report=False, progress=False)
        tables.append([(output / part).read_bytes() for part in ("predictions.csv", "receipt.json", "metrics.json")])
    assert tables[1:] == tables[:1] * 3


def test_g10_an_export_that_differs_fails_and_names_the_first_stage(tmp_path, monkeypatch, asked_here):
    classifier = make_classifier()
    from tfpipe.images import decoding

    right = decoding.resize_image

    def wrong(image, size, mode):
        # What production code does who has not heard of antialiasing; evaluation's own resize
        # stays.
        return tf.cast(tf.image.resize(image, size), tf.uint8) if tf.inside_function() else right(image, size, mode)

    monkeypatch.setattr(decoding, "resize_image", wrong)
    with pytest.raises(
        DataError, match=r"saved_model differs at its pixels \(pixels.pixels\), by \d+ where 0 is allowed, in .*"
    ):
        tfpipe.export(classifier, tmp_path / "export", formats=("saved_model",))
    assert list(tmp_path.iterdir()) == []


# ---- what is in it


def test_signatures_are_what_serving_expects(exported):
    loaded = tf.saved_model.load(str(exported.folder / "saved_model"))
    shapes = {
        name: (
            {k: (v.dtype, v.shape.as_list()) for k, v in signature.structured_input_signature[1].items()},
            set(signature.structured_outputs),
        )
        for name, signature in loaded.signatures.items()
    }
    files, images = {"image_bytes": (tf.string, [None])}, {"image": (tf.uint8, [None, 8, 8, 3])}
    assert shapes == {
        "serving_default": (files, {"probabilities", "classes", "scores", "valid"}),
        "image": (images, {"probabilities", "classes", "scores"}),
        "features": (files, {"features", "valid"}),
        "pixels": (files, {"image", "valid"}),
    }


def test_one_bad_file_of_a_thousand_changes_no_other(exported):
    ask = tf.saved_model.load(str(exported.folder / "saved_model")).signatures["serving_default"]
    files = [FILES[index % len(FILES)] for index in range(1000)]
    whole = ask(tf.constant(files))
    assert whole["valid"].numpy().all()
    for bad in BAD:
        found = ask(tf.constant([*files[:321], bad, *files[322:]]))
        assert np.flatnonzero(~found["valid"].numpy()).tolist() == [321]
        for name in ("probabilities", "scores"):
            assert not found[name].numpy()[321].any()
            others = np.delete(found[name].numpy(), 321, axis=0)
            np.testing.assert_array_equal(others, np.delete(whole[name].numpy(), 321, axis=0))
        assert found["classes"].numpy()[321].tolist() == [b"", b""]
    empty = ask(tf.constant([], tf.string))
    assert empty["probabilities"].shape == (0, 3)
    assert not ask(tf.constant(list(BAD)))["valid"].numpy().any()


def test_classes_and_scores_are_the_likeliest(exported):
    for name in ("saved_model", "frozen_bytes.pb"):
        if name == "saved_model":
            found = tf.saved_model.load(str(exported.folder / name)).signatures["serving_default"](tf.constant(FILES))
            found = {key: value.numpy() for key, value in found.items()}
        else:
            found = tfpipe.load_frozen(exported.folder / name)(image_bytes=FILES)
        order = np.argsort(-found["probabilities"], axis=1)[:, :2]
        assert [[name.decode() for name in row] for row in found["classes"]] == [[CLASS_NAMES[i] for i in row] for row in order]
        np.testing.assert_array_equal(found["scores"], np.take_along_axis(found["probabilities"], order, axis=1))


@pytest.mark.parametrize(
    "name", ["", "saved_model", "frozen_image.pb", "frozen_bytes.pb", "model.keras", "model.tflite", "model.onnx", "model.xml"]
)
def test_every_file_answers_when_it_is_opened(exported, name):
    if {"model.onnx": "onnx", "model.xml": "openvino"}.get(name, "pb") not in FORMATS:
        pytest.skip("its extra is not installed")
    predictor = opening.load(exported.folder / name)
    images = np.stack([evaluated(data) for data in FILES])
    assert tuple(predictor.class_names) == CLASS_NAMES
    assert getattr(predictor, "form", "") == {"": "saved_model", "saved_model": "saved_model", "model.keras": ""}.get(
        name, f".{name.split('.')[-1]}"
    )
    assert (predictor.image_size, predictor.resize, predictor.sha256) == ((8, 8), "stretch", exported.classifier.sha256)
    tolerance = 1e-5 if name in ("model.tflite", "model.onnx", "model.xml") else 0
    np.testing.assert_allclose(predictor.predict(images), exported.classifier.predict(images), rtol=0, atol=tolerance)


def test_beside_the_files_lies_what_people_need(exported):
    folder = exported.folder
    assert (folder / "labels.txt").read_text("utf-8").splitlines() == list(CLASS_NAMES)
    found = specifications.from_json((folder / "preprocessing.json").read_text("utf-8"), folder)
    assert found.sha256 == exported.classifier.sha256
    assert (found.preprocessing, found.top_k) == ("tf", 2)
    sums = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text("utf-8").splitlines())
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert sums.keys() == there.keys() - {"SHA256SUMS"}
    assert all(hashlib.sha256(there[name].read_bytes()).hexdigest() == value for name, value in sums.items())
    rows = json.loads((folder / "parity.json").read_text("utf-8"))["parity"]
    assert {row["artefact"] for row in rows} >= {"saved_model", "frozen_image.pb", "frozen_bytes.pb", "model.tflite"}
    assert {(row["device"], row["arithmetic"]) for row in rows} >= {("CPU", "float32")}
    on_cpu = [row for row in rows if row["device"] == "CPU"]
    exact = [row for row in on_cpu if row["artefact"] in ("saved_model", "frozen_image.pb", "frozen_bytes.pb")]
    assert {row["difference"] for row in exact} == {0.0}
    assert "小 猫" in (folder / "model_card.md").read_text("utf-8")


def test_the_comparison_runs_where_tfpipe_is_not_imported():
    source = (CHECKOUT / "tfpipe" / "exporting" / "parity_process.py").read_text("utf-8")
    assert "import tfpipe" not in source
    assert "from tfpipe" not in source


def test_frozen_graphs_are_the_same_bytes_in_another_process_and_after_other_work(exported, tmp_path):
    make_classifier(seed=5)  # Keras numbers what it makes through a session
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from tfpipe.formats import frozen_graph, opening, specifications\n"
        "from pathlib import Path\n"
        "folder = Path(sys.argv[1])\n"
        "model = opening.load(folder / 'model.keras')\n"
        "given = specifications.from_json((folder / 'preprocessing.json').read_text('utf-8'), folder)\n"
        "images = frozen_graph.freeze_images(model, given)\n"
        "files = frozen_graph.freeze_files(images, given)\n"
        "for name, graph in (('frozen_image.pb', images), ('frozen_bytes.pb', files)):\n"
        "    assert frozen_graph.to_bytes(graph) == (folder / name).read_bytes(), name\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported.folder), str(CHECKOUT)], capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    script = code.split("\n", 1)[1].replace("sys.argv[1]", repr(str(exported.folder)))
    exec("import sys\n" + script, {})  # noqa: S102 (the same code, here)


def test_frozen_images_have_no_functions_and_no_variables(exported):
    graph = tf.compat.v1.GraphDef.FromString((exported.folder / "frozen_image.pb").read_bytes())
    assert not graph.library.function
    operations = {node.op for node in graph.node}
    assert not operations & {
        "VarHandleOp",
        "ReadVariableOp",
        "VariableV2",
        "HashTableV2",
        "PartitionedCall",
        "StatefulPartitionedCall",
        "If",
        "While",
    }
    assert {"image", "probabilities", "features"} <= {node.name for node in graph.node}
    files = tf.compat.v1.GraphDef.FromString((exported.folder / "frozen_bytes.pb").read_bytes())
    everything = [*files.node, *(node for function in files.library.function for node in function.node_def)]
    assert not {node.op for node in everything} & {"VarHandleOp", "ReadVariableOp", "HashTableV2", "LookupTableFindV2"}


def test_a_frozen_graph_runs_in_a_session_of_old(exported):
    graph = tf.compat.v1.GraphDef.FromString((exported.folder / "frozen_image.pb").read_bytes())
    images = np.stack([evaluated(data) for data in FILES])
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.import_graph_def(graph, name="")
        found = session.run("probabilities:0", {"image:0": images})
    np.testing.assert_array_equal(found, exported.classifier.predict(images))


def test_the_lines_of_the_documentation_run_on_an_export(exported, tmp_path, monkeypatch, capsys):
    source = (CHECKOUT / "docs/how-to/export.md").read_text("utf-8").split("```python\n")[1].split("```")[0]
    (tmp_path / "export").symlink_to(exported.folder)
    for name, data in {"new_photos/1.jpg": FILES[0], "new_photos/2.png": FILES[1], "README.md": b"# tfpipe"}.items():
        write(tmp_path / name, data)
    monkeypatch.chdir(tmp_path)
    exec(source, {})  # noqa: S102 (what a reader would type)
    lines = capsys.readouterr().out.splitlines()
    expected = exported.classifier.predict(np.stack([evaluated(data) for data in FILES[:2]]))
    for line, probabilities in zip(lines, expected, strict=False):
        name = CLASS_NAMES[probabilities.argmax()].encode()
        assert line == " ".join(map(str, (name, name, probabilities.max(), True)))
    assert lines[2:] == ["b'' b'' 0.0 False"]


# ---- half


def test_half_stores_half_and_reports_what_it_costs(tmp_path, asked_here):
    build_images(tmp_path, {"val": dict.fromkeys(CLASS_NAMES, 4)})
    classifier = make_classifier(size=(16, 16))
    network = classifier.model.get_layer("frozen").network
    inputs = keras.Input((16, 16, 3), dtype="uint8")
    values = classifier.model.get_layer("preprocessing")(inputs)
    values = keras.layers.Flatten()(network(values))
    values = keras.layers.Dense(3, activation="softmax")(keras.layers.Dense(64, activation="tanh")(values))
    large = keras.Model(inputs, values)
    wrapped = keras.Model(large.input, large.output)
    plain = wrap(_headless(wrapped), class_names=CLASS_NAMES, preprocessing="unit")
    whole = tfpipe.export(plain, tmp_path / "whole", formats=("pb",))
    done = tfpipe.export(plain, tmp_path / "half", formats=("pb", "saved_model"), half=True, data=tmp_path / "shards")
    sizes = [{name: size for name, size, _ in export.files} for export in (whole, done)]
    assert sizes[1]["frozen_image.pb"] < 0.6 * sizes[0]["frozen_image.pb"]
    assert {row.difference for row in done.parity if row.device == "CPU"} == {0.0}
    assert done.half["num_pictures"] == 12
    assert 0 < done.half["largest_difference"] < 0.05
    with pytest.raises(ValueError, match="need images"):
        tfpipe.export(plain, tmp_path / "other", half=True)


def _headless(model):
    """The part of a model behind its preprocessing, as a program would have it that preprocesses by itself."""
    inputs = keras.Input((16, 16, 3))
    values = inputs
    for layer in model.layers[1:]:
        if not isinstance(layer, Preprocessing):
            values = layer(values)
    return keras.Model(inputs, values)


# ---- whole or absent


def test_nothing_is_left_of_an_export_that_fails(tmp_path, monkeypatch, asked_here):
    from tfpipe.exporting import exporter

    target = tmp_path / "export"
    tfpipe.export(make_classifier(), target, formats=("keras",))
    before = (target / "SHA256SUMS").read_bytes()
    for stage in ("_write_metadata", "_write_parity"):
        with monkeypatch.context() as patch:
            patch.setattr(exporter, stage, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                tfpipe.export(make_classifier(), target, formats=("keras",), overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == ["export"]
        assert (target / "SHA256SUMS").read_bytes() == before
    (tmp_path / "link").symlink_to(target)
    for leftover in ("tmp", "old"):
        write(tmp_path / f".export.999999999.{leftover}" / "half", b"of a killed process")
    tfpipe.export(make_classifier(seed=1), tmp_path / "link", formats=("keras",), overwrite=True)
    assert (target / "SHA256SUMS").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "link"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ()}, "formats must be some of"),
        ({"formats": ("pb", "pb")}, "each once"),
        ({"formats": ("gguf",)}, "formats must be some of saved_model, pb, tflite, tflite_int8, onnx, openvino, keras"),
        ({"class_names": ["a"]}, "has its own class_names"),
        ({"top_k": 0}, "top_k must be an integer, 1 or more"),
        ({"checkpoint": "last"}, "is of a run's folder"),
        ({"half": True}, "need images"),
        ({"split": "val"}, "need images"),
        ({"max_pixels": 20}, "only 1 of 37 files could be compared"),
    ],
)
def test_wrong_arguments_are_reported_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        tfpipe.export(make_classifier(), tmp_path / "export", **options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_replaced_unrequested(tmp_path, monkeypatch):
    write(tmp_path / "thesis" / "chapter.tex", b"precious")
    with pytest.raises(ValueError, match="holds files; choose another folder"):
        tfpipe.export(make_classifier(), tmp_path / "thesis")
    for sums in (None, b"", b"ff  chapter.tex\n"):
        if sums is not None:
            write(tmp_path / "thesis" / "SHA256SUMS", sums)
        with pytest.raises(ValueError, match="has other files than an export, which overwrite would delete"):
            tfpipe.export(make_classifier(), tmp_path / "thesis", overwrite=True)
    with pytest.raises(ValueError, match="holds an export; replace it with overwrite=True"):
        tfpipe.export(make_classifier(), tmp_path / "thesis")
    with pytest.raises(ValueError, match="must be a folder"):
        tfpipe.export(make_classifier(), tmp_path / "thesis" / "chapter.tex")
    tmp_path.joinpath("here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match="another folder than the one that you are in"):
        tfpipe.export(make_classifier(), ".")
    with pytest.raises(ValueError, match="is a mount point, which cannot be replaced"):
        tfpipe.export(make_classifier(), "/")


def test_an_export_that_was_changed_or_is_needed_is_not_replaced(tmp_path, asked_here):
    target = tmp_path / "export"
    tfpipe.export(make_classifier(), target, formats=("keras",))
    with pytest.raises(ValueError, match=r"another folder than that of .*model.keras, which is needed"):
        tfpipe.export(target / "model.keras", target, formats=("pb",), overwrite=True)
    card = target / "model_card.md"
    card.write_text(card.read_text("utf-8") + "For my grandmother.", "utf-8")
    write(target / "notes.txt", b"mine")
    with pytest.raises(ValueError, match=r"added or changed: model_card\.md, notes\.txt; move it first"):
        tfpipe.export(make_classifier(), target, overwrite=True)


def test_what_is_added_while_an_export_is_made_anew_is_not_deleted(tmp_path, asked_here):
    target = tmp_path / "export"
    tfpipe.export(make_classifier(), target, formats=("keras",))
    before = (target / "model.keras").read_bytes()

    def fill_in(said):
        if said.startswith("comparing"):
            write(target / "notes.txt", b"mine")

    with pytest.raises(ValueError, match=r"added or changed: notes\.txt; move it first"):
        tfpipe.export(make_classifier(seed=1), target, formats=("keras",), overwrite=True, log=fill_in)
    assert (target / "notes.txt").read_bytes() == b"mine"
    assert (target / "model.keras").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_what_a_foreign_model_is_taken_for_is_reported(tmp_path, asked_here, monkeypatch):
    layers = [keras.layers.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax")]
    said = []
    monkeypatch.chdir(tmp_path)  # where "best" is a folder like any other
    tfpipe.export(keras.Sequential(layers), "best", formats=("keras",), class_names=["a", "b"], log=said.append)
    assert "preprocessing=none, resize=stretch, outputs=probabilities, png16=high_byte, background=keep" in said[0]
    tfpipe.export(tmp_path / "best" / "model.keras", tmp_path / "again", formats=("keras",), log=said.append)
    assert sum("assumed, given or by default" in line for line in said) == 1


def test_a_checkpoint_of_elsewhere_is_not_described_as_the_runs(tmp_path, asked_here):
    run = tmp_path / "run"
    write(run / "run.json", b"{}")
    make_classifier().model.save(tmp_path / "other.keras")
    with pytest.raises(FileNotFoundError, match=r"lst: no such file; checkpoint must be best, last or the path"):
        tfpipe.export(run, tmp_path / "export", formats=("keras",), checkpoint="lst")
    tfpipe.export(run, tmp_path / "export", formats=("keras",), checkpoint=tmp_path / "other.keras")
    assert (tmp_path / "export" / "model_card.md").exists()  # of the run, it would be an error: there is nothing in run.json


def test_probabilities_that_are_not_numbers_are_never_good():
    row = parity.Row("model.tflite", "image.probabilities", "probabilities", float("nan"), None, "a.jpg", 5)
    assert not row.is_good
    with pytest.raises(DataError, match=r"differs at its probabilities .* by nan where any number is allowed, in a\.jpg"):
        parity.check([row])


def test_models_that_cannot_be_exported_are_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        tfpipe.export(tmp_path / "nothing.keras", tmp_path / "export")
    tmp_path.joinpath("run").mkdir()
    with pytest.raises(FileNotFoundError, match="not a run, or one that is not finished"):
        tfpipe.export(tmp_path / "run", tmp_path / "export")
    model = keras.Sequential([keras.layers.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="class_names is needed"):
        tfpipe.export(model, tmp_path / "export")
    with pytest.raises(ValueError, match="outputs=logits"):
        tfpipe.export(model, tmp_path / "export", class_names=["a", "b", "c"])

"""Models made by somebody else: none of their code runs, none of their files keeps us waiting, each is refused in words."""

import json
import os
import shutil
import signal
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import write
from evaluation_fixtures import build_images, make_classifier, make_table
from export_fixtures import FORMATS, exported
from tensorflow.lite.tools import flatbuffer_utils
from tensorflow.python.framework import op_def_registry

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.evaluation import metrics
from tfpipe.exporting import model_card, model_source
from tfpipe.formats import frozen_graph, onnx_files, opening, operations, specifications, tflite_metadata
from tfpipe.models import features, predictions
from tfpipe.records import checksums, run_folders
from tfpipe.training import checkpoints
from tfpipe.training.logs import run_log

pytestmark = pytest.mark.tf

__all__ = ["exported"]  # a fixture

ZEROS = np.zeros((1, 8, 8, 3), np.uint8)
PATIENCE = 60  # seconds that no refusal may take


@pytest.fixture(autouse=True)
def _does_not_hang():
    def stop(number, frame):
        raise TimeoutError(f"not refused within {PATIENCE} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# ---- a SavedModel is a program


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """A SavedModel that reads one file and writes it to another whenever it is asked; and the file that it writes."""
    written = tmp_path_factory.mktemp("evil") / "written"

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.uint8, name="image")], autograph=False)
        def image(self, image):
            with tf.control_dependencies([tf.io.write_file(str(written), tf.io.read_file("/etc/hostname"))]):
                return {"probabilities": tf.ones([tf.shape(image)[0], 3]) / 3}

    module = Module()
    tf.saved_model.save(module, str(written.parent / "model"), signatures={"image": module.image})
    return written.parent / "model", written


def put_beside(evil, real, *, resealed=False):
    """Puts the evil program into a real SavedModel's folder, in place of its own."""
    extra = real / "assets.extra"
    for path in (real / "saved_model.pb", real / "fingerprint.pb"):
        shutil.copy(evil[0] / path.name, path)
    shutil.rmtree(real / "variables")
    shutil.copytree(evil[0] / "variables", real / "variables")
    evil[1].unlink(missing_ok=True)
    if resealed:
        (extra / "SHA256SUMS").unlink()
        checksums.write(real, extra / "SHA256SUMS")


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of the export, to be spoiled."""
    return shutil.copytree(exported.folder, tmp_path / "copy")


def ask_by_load(path, tmp_path, **options):
    return tfpipe.load(path, **options).predict(ZEROS)


def ask_by_predict(path, tmp_path, **options):
    write(tmp_path / "photos" / "1.png", tf.io.encode_png(np.zeros((8, 8, 3), np.uint8)).numpy())
    return tfpipe.predict(path, tmp_path / "photos", tmp_path / "out.csv", progress=False, **options)


def ask_by_page(path, tmp_path, **options):
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'tfpipe[page]'")
    from tfpipe.page.page import serve

    with serve(path, port=0, progress=False, **options):
        pass


ASKS = [ask_by_load, ask_by_predict, ask_by_page]


@pytest.mark.parametrize("ask", ASKS)
def test_a_saved_model_that_was_replaced_does_not_run(evil, copy, tmp_path, ask):
    put_beside(evil, copy / "saved_model")
    with pytest.raises(DataError, match=r"not what is listed in .*SHA256SUMS: fingerprint.pb is another file, and \d more"):
        ask(copy, tmp_path)
    moved = shutil.move(copy / "saved_model", tmp_path / "moved")
    with pytest.raises(DataError, match=r"not what is listed in .*SHA256SUMS"):
        ask(moved, tmp_path)
    assert not evil[1].exists()


@pytest.mark.parametrize("ask", ASKS[:2])
def test_one_that_is_whole_in_itself_is_searched_and_runs_for_those_who_trust_it(evil, copy, tmp_path, ask):
    put_beside(evil, copy / "saved_model", resealed=True)
    moved = shutil.move(copy / "saved_model", tmp_path / "moved")
    with pytest.raises(DataError, match=r"operations that may do more than compute: ReadFile, WriteFile; .*--trust"):
        ask(moved, tmp_path)
    assert not evil[1].exists()
    ask(moved, tmp_path, trust=True)
    assert evil[1].exists()  # so that what was refused would have run


def test_without_a_list_it_is_searched_and_trust_is_needed(evil, copy, tmp_path):
    moved = shutil.copytree(copy / "saved_model", tmp_path / "moved")
    (moved / "assets.extra" / "SHA256SUMS").unlink()
    with pytest.raises(DataError, match=r"has no operations that do more than compute; a model is a program.*--trust"):
        tfpipe.load(moved)
    assert tfpipe.load(moved, trust=True).predict(ZEROS)
    shutil.copy(evil[0] / "saved_model.pb", moved / "saved_model.pb")
    with pytest.raises(DataError, match="may do more than compute: ReadFile, WriteFile"):
        tfpipe.load(moved)


def test_an_export_of_before_is_vouched_for_by_the_list_beside_it(copy):
    (copy / "saved_model" / "assets.extra" / "SHA256SUMS").unlink()
    name = "saved_model/assets.extra/SHA256SUMS"
    lines = [line for line in (copy / "SHA256SUMS").read_text("utf-8").splitlines() if not line.endswith(name)]
    (copy / "SHA256SUMS").write_text("\n".join(lines), "utf-8")
    assert tfpipe.load(copy).predict(ZEROS)


@pytest.mark.parametrize("name", ["saved_model.cpb", "variables/more", "assets/x"])
def test_a_file_more_is_refused(copy, name):
    moved = shutil.move(copy / "saved_model", copy.parent / "moved")
    write(moved / name, b"")
    with pytest.raises(DataError, match=f"{name} is not in the list; .*--trust"):
        tfpipe.load(moved)
    (moved / "assets.extra" / "SHA256SUMS").unlink()
    checksums.write(moved, moved / "assets.extra" / "SHA256SUMS")
    if not name.startswith("assets"):
        with pytest.raises(DataError, match=f"has {name}, which is not part of a SavedModel"):
            tfpipe.load(moved)


def test_what_people_add_is_no_hindrance(copy):
    folder = copy / "saved_model"
    for name in (".DS_Store", "variables/.nfs0001", "Thumbs.db", "assets.extra/tf_serving_warmup_requests"):
        write(folder / name, b"x")
    operations.check_saved_model(folder, trust=False)
    write(folder / "notes.txt", b"x")
    with pytest.raises(DataError, match=r"notes.txt is not in the list; .*--trust"):
        operations.check_saved_model(folder, trust=False)
    operations.check_saved_model(folder, trust=True)
    shutil.move(folder / "variables", copy / "variables")
    (folder / "variables").symlink_to(copy / "variables")
    for trust in (False, True):
        with pytest.raises(DataError, match=r"variables: not a regular file|: variables/\S+ is missing, and \d more: damaged"):
            operations.check_saved_model(folder, trust=trust)


# Of each kind: files, checkpoints, Python, network, other processes, logs to files, memory that is
# a file, extensions.
FOREIGN = """ReadFile WriteFile MatchingFiles SaveV2 RestoreV2 MergeV2Checkpoints LoadAndRemapMatrix PyFunc PyFuncStateless
EagerPyFunc TextLineDataset TFRecordDatasetV2 FixedLengthRecordDatasetV2 CacheDatasetV2 GeneratorDataset SnapshotDatasetV2
DataServiceDatasetV4 SqlDataset WholeFileReaderV2 DecodeProtoV2 EncodeProto PrintV2 DebugIdentityV2 WriteSummary
InitializeTableFromTextFileV2 RemoteCall _Recv Send CollectiveReduceV2 ImmutableConst Abort XlaCallModule NoSuchOperation"""


@pytest.mark.parametrize("in_function", [False, True])
def test_operations_that_do_more_than_compute_are_named(in_function):
    for operation in FOREIGN.split():
        graph = tf.compat.v1.GraphDef()
        graph.node.add(op="Relu", name="relu")
        (graph.library.function.add().node_def if in_function else graph.node).add(op=operation, name="x")
        with pytest.raises(DataError, match=rf"here: its graph has .*: {operation}; "):
            operations.check_graph(graph, "here", trust=False)
        operations.check_graph(graph, "here", trust=True)


def test_no_operation_that_takes_the_name_of_a_file_or_machine_is_known():
    words = ("file", "path", "prefix", "address", "memory_region", "url", "host", "descriptor", "output_stream", "command")
    harmless = {"TensorSliceDataset"}  # its flag is_files is a hint for the optimiser
    taken = []
    for name in sorted(operations._known()):
        definition = op_def_registry.get(name)
        arguments = [*definition.input_arg, *definition.attr] if definition else []
        taken += [name for argument in arguments if any(word in argument.name for word in words)]
    assert set(taken) == harmless
    assert len(operations._known()) > 500


def test_a_function_that_saves_is_not_a_hiding_place(copy):
    """What only a graph of version 1 calls may save; nothing that Python can call, be it by a name that was put in."""
    from tensorflow.core.protobuf import saved_model_pb2

    moved = shutil.move(copy / "saved_model", copy.parent / "moved")
    content = saved_model_pb2.SavedModel.FromString((moved / "saved_model.pb").read_bytes())
    graph = content.meta_graphs[0]
    saving = next(f for f in graph.graph_def.library.function if any(node.op == "SaveV2" for node in f.node_def))

    def check(spoiled):
        (moved / "saved_model.pb").write_bytes(spoiled.SerializeToString())
        (moved / "assets.extra" / "SHA256SUMS").unlink()
        checksums.write(moved, moved / "assets.extra" / "SHA256SUMS")
        with pytest.raises(DataError, match=r"may do more than compute: .*SaveV2"):
            opening.load(moved)

    bare, called, swapped = (saved_model_pb2.SavedModel.FromString(content.SerializeToString()) for _ in range(3))
    node = next(node for node in bare.meta_graphs[0].object_graph_def.nodes if node.HasField("bare_concrete_function"))
    node.bare_concrete_function.concrete_function_name = saving.signature.name
    check(bare)
    signature = next(iter(graph.object_graph_def.concrete_functions))
    caller = next(f for f in called.meta_graphs[0].graph_def.library.function if f.signature.name == signature)
    caller.node_def.add(op="PartitionedCall", name="x").attr["f"].func.name = saving.signature.name
    check(called)
    there = next(f for f in swapped.meta_graphs[0].graph_def.library.function if f.signature.name == saving.signature.name)
    there.attr["api_implements"].s = b"x"
    check(swapped)


# ---- files of one piece, sealed by whoever made them


def test_a_frozen_graph_that_reads_files_is_refused(exported, tmp_path):
    graph = tf.compat.v1.GraphDef.FromString((exported.folder / "frozen_image.pb").read_bytes())
    del graph.node[-1]  # the seal
    graph.node.add(op="ReadFile", name="x", input=["specification"])
    path = write(tmp_path / "a.pb", frozen_graph.to_bytes(graph))
    for open_model in (tfpipe.load, tfpipe.load_frozen):
        with pytest.raises(DataError, match="more than compute: ReadFile"):
            open_model(path)
    assert tfpipe.load_frozen(path, trust=True).inputs == ("image",)


def test_a_tflite_file_with_operations_of_tensorflow_is_refused(exported, tmp_path):
    specification = tfpipe.load(exported.folder / "model.tflite").predictor.specification
    data = (exported.folder / "model.tflite").read_bytes()
    with zipfile.ZipFile(exported.folder / "model.tflite") as archive:
        model = flatbuffer_utils.convert_bytearray_to_object(data[: archive.infolist()[0].header_offset])
    code = model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = 32
    code.customCode = b"FlexReadFile"
    changed = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    path = write(tmp_path / "a.tflite", tflite_metadata.attach(changed, specification))
    with pytest.raises(DataError, match="more than compute: FlexReadFile; "):
        tfpipe.load(path)


def test_an_onnx_file_with_weights_elsewhere_is_refused(exported, tmp_path, monkeypatch):
    if "onnx" not in FORMATS:
        pytest.skip("the extra onnx is not installed")
    import onnx

    model = onnx.load(exported.folder / "model.onnx")
    del model.metadata_props[-1]  # the seal
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    facts = {"location": "secret", "offset": "0", "length": str(len(weight.raw_data))}
    write(tmp_path / "secret", weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in facts.items():
        weight.external_data.add(key=key, value=value)
    path = write(tmp_path / "a.onnx", checksums.append_entry(model.SerializeToString(), onnx_files.CHECKSUM_ENTRY))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="weights in other files"):
        tfpipe.load(path)


# ---- files of Keras


def rewritten(source, target, change=lambda config: None, more=()):
    """A .keras file with another configuration, and more members."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                config = json.loads(data)
                data = change(config) or json.dumps(config).encode()
            new.writestr(name, data)
        for name, data in more:
            new.writestr(name, data)
    return target


def layer_of(module, class_name, **options):
    def change(config):
        layer = config["config"]["layers"][1]
        layer |= {"module": module, "class_name": class_name, "registered_name": None}
        layer["config"] = {"name": layer["config"]["name"], **options}

    return change


@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    path = tmp_path_factory.mktemp("keras") / "model.keras"
    make_classifier().model.save(path)
    return path


@pytest.fixture(scope="module")
def with_lambda(tmp_path_factory):
    """A model that writes a file when it is asked; and the file."""
    folder = tmp_path_factory.mktemp("lambda")
    written = str(folder / "written")
    code = keras.layers.Lambda(lambda values: (open(written, "w").close(), values)[1], output_shape=(8, 8, 3))
    network = keras.Sequential([keras.Input((8, 8, 3)), code, keras.layers.Flatten(), keras.layers.Dense(2, "softmax")])
    network.save(folder / "model.keras")
    Path(written).unlink(missing_ok=True)
    return folder / "model.keras", Path(written)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    build_images(root, {"test": {"cat": 2}})
    return root / "shards"


def test_no_code_of_a_lambda_layer_runs(with_lambda, shards, tmp_path):
    path, written = with_lambda
    for ask in (
        lambda: tfpipe.load(path),
        lambda: ask_by_predict(path, tmp_path),
        lambda: tfpipe.evaluate(path, shards, "test", tmp_path / "eval", progress=False),
        lambda: tfpipe.export(path, tmp_path / "export", class_names=["a", "b"]),
    ):
        with pytest.raises(DataError, match=r"model.keras: .* it holds Python code, or would read other files; .*--trust"):
            ask()
    assert not written.exists()
    model_source.find(path, "best", {"class_names": ["a", "b"]}, trust=True)  # as export does, which looks at answers to noise
    assert written.exists()  # so that what was refused would have run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (layer_of("os", "system"), "Could not locate class 'system'"),
        (layer_of("keras.utils", "get_file"), "not a modeling function|not .*KerasSaveable"),
        (layer_of("keras.layers", "TFSMLayer", filepath="/tmp"), "would read other files"),  # noqa: S108
        (layer_of("keras.layers", "StringLookup", vocabulary="/etc/passwd"), "would read other files"),
        (lambda config: b"[" * 200_000, "cannot be loaded as a Keras model"),
        (lambda config: b"\xff", "cannot be loaded as a Keras model"),
        (lambda config: b"[]", "cannot be loaded as a Keras model"),
    ],
)
def test_what_a_configuration_may_not_name(harmless, tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        tfpipe.load(rewritten(harmless, tmp_path / "a.keras", change))


@pytest.mark.parametrize("name", ["../out", "/etc/out", "assets/../../out"])
def test_members_that_lead_out_are_refused(harmless, tmp_path, name):
    with pytest.raises(DataError, match="leads out of it"):
        tfpipe.load(rewritten(harmless, tmp_path / "a.keras", more=[(name, b"")]))


def test_a_member_that_would_inflate_is_refused(harmless, tmp_path):
    assert tfpipe.load(rewritten(harmless, tmp_path / "a.keras")).predict(ZEROS)  # compressed, it is still one
    path = rewritten(harmless, tmp_path / "b.keras", lambda config: b" " * 100_000_000 + json.dumps(config).encode())
    with pytest.raises(DataError, match=r"'config.json' would have \d+ bytes"):
        tfpipe.load(path)


# ---- what is no file, and what is no document


def replaced_by_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def test_a_pipe_in_the_place_of_any_file_of_an_export_is_refused(exported, tmp_path):
    names = [path.relative_to(exported.folder).as_posix() for path in sorted(exported.folder.rglob("*")) if path.is_file()]
    asked = 0
    for index, name in enumerate(names):
        copy = shutil.copytree(exported.folder, tmp_path / str(index))
        replaced_by_a_pipe(copy / name)
        opened = copy / name if (copy / name).suffix in (".pb", ".tflite", ".onnx", ".keras") and "/" not in name else copy
        if opened != copy or name.startswith("saved_model/") or name == "SHA256SUMS":
            with pytest.raises(DataError, match="not a regular file"):
                tfpipe.load(opened)
            asked += 1
        else:
            assert tfpipe.load(opened)  # it is for people, and not asked
    assert asked >= 12


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("model.keras", tfpipe.load),
        ("run.json", run_folders.locate_data),
        ("history.csv", run_log.read_history),
        ("state/head.npz", lambda folder: checkpoints.load(folder / "state" / "head.npz")),
        ("features.json", features._load),
        ("receipt.json", predictions.read),
        ("weights.h5", lambda folder: tfpipe.networks.weight_files.load(make_classifier().model, folder / "weights.h5")),
    ],
)
def test_a_pipe_in_the_place_of_a_file_of_a_run_is_refused(tmp_path, name, read):
    if name == "features.json":
        name = features.FACTS_NAME
    replaced_by_a_pipe(write(tmp_path / name, b""))
    with pytest.raises(DataError, match="not a regular file"):
        read(tmp_path)


SPOILED = [
    {"class_names": "cat"},
    {"class_names": [["cat"]]},
    {"class_names": {"cat": 1}},
    {"image_size": [8]},
    {"image_size": ["8", "8"]},
    {"image_size": [0, 8]},
    {"image_size": [2**64, 8]},
    {"resize": "other"},
    {"top_k": "2"},
    {"max_pixels": None},
    {"sha256": 5},
    {"format_version": 2},
]


@pytest.mark.parametrize("change", SPOILED)
def test_a_specification_of_other_types_is_refused(exported, tmp_path, change):
    facts = json.loads((exported.folder / "preprocessing.json").read_bytes())
    path = tmp_path / "preprocessing.json"
    assert specifications.from_json(json.dumps(facts), path)
    with pytest.raises(DataError, match=r"not the specification|of another version"):
        specifications.from_json(json.dumps(facts | change), path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"5", b"[" * 200_000, b'{"a": 1, "a": 1}', b'{"a": ' + b"9" * 5000 + b"}"])
def test_what_is_not_a_document_is_refused(tmp_path, exported, text):
    specification = tfpipe.load(exported.folder / "frozen_image.pb").predictor.specification
    for name in ("run.json", features.FACTS_NAME, "receipt.json", "parts/predictions-00000-of-00001.json"):
        write(tmp_path / name, text)
    for read in (
        lambda: specifications.from_json(text, tmp_path / "preprocessing.json"),
        lambda: run_folders.locate_data(tmp_path),
        lambda: model_card.render(specification, run=tmp_path),
        lambda: features._load(tmp_path),
        lambda: predictions.read(tmp_path),
        lambda: tfpipe.evaluation.partial_tables.missing_parts(tmp_path, 1, {}),
    ):
        with pytest.raises(DataError):
            read()


RUN = {
    "recipe": {"backbone": "vgg16", "weights": "none", "hidden": [], "pooling": "avg", "dropout": 0.0, "mode": "frozen"},
    "chosen": {"optimizer": "adamw", "batch_size": 8, "seed": 0},
    "data": {"name": "pets", "root_hash": "0" * 64, "num_train": 5, "num_val": 5},
    "versions": {"keras": "3"},
    "precision": "float32",
}


@pytest.mark.parametrize(
    "change", [{"recipe": []}, {"chosen": None}, {"data": 5}, {"versions": ["3"]}, {"precision": 32}, {"chosen": {"seed": "0"}}]
)
def test_a_run_of_other_types_has_no_card(exported, tmp_path, change):
    specification = tfpipe.load(exported.folder / "frozen_image.pb").predictor.specification
    write(tmp_path / "run.json", json.dumps(RUN).encode())
    assert "vgg16" in model_card.render(specification, run=tmp_path)
    write(tmp_path / "run.json", json.dumps(RUN | change).encode())
    with pytest.raises(DataError, match=r"run\.json: not as tfpipe writes it"):
        model_card.render(specification, run=tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": "1"},
        {"accuracy_interval": [0.5]},
        {"per_class": {}},
        {"binary": 5},
        {"confusion": {"class_names": ["a", "b"], "cells": [[0, 2, 1]]}},
        {"confusion": {"class_names": ["a", "b"], "cells": [[0, -1, 1]]}},
        {"confusion": {"class_names": ["a", "b"], "matrix": [[0, 1], [0, 0], [0, 1]]}},
        {"confusion": {"class_names": ["a", "b"]}},
        {"top_k": [1.0]},
    ],
)
def test_metrics_of_other_types_are_refused(tmp_path, change):
    content = metrics.measure(make_table([0, 1, 1], [[0.5, 0.5], [0.25, 0.75], [0.75, 0.25]]))
    write(tmp_path / "metrics.json", json.dumps(content).encode())
    assert metrics.load(tmp_path)["count"] == 3
    write(tmp_path / "metrics.json", json.dumps(content | change).encode())
    with pytest.raises(DataError, match=r"metrics\.json: (not as tfpipe writes it|its confusion matrix)"):
        metrics.load(tmp_path)


def test_a_state_that_would_inflate_is_refused(tmp_path):
    checkpoints.save(tmp_path / "a.npz", {"weights": [np.zeros(10)]}, {})
    assert checkpoints.load(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz") as old, zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(DataError, match="it is compressed"):
        checkpoints.load(tmp_path / "b.npz")

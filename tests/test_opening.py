"""Models are opened whatever their form; what is none is told what is needed."""

import pytest
from conftest import write

from tfpipe.formats import opening

pytestmark = pytest.mark.tf


def test_the_folder_of_an_export_without_a_saved_model_names_its_files(tmp_path):
    for name in ("preprocessing.json", "labels.txt", "model.tflite", "frozen_image.pb", "frozen_bytes.pb"):
        write(tmp_path / name, b"")
    message = "an export without saved_model; give one of its files: frozen_bytes.pb, frozen_image.pb, model.tflite$"
    with pytest.raises(FileNotFoundError, match=message):
        opening.load(tmp_path)
    for file in tmp_path.glob("*.[pt]*"):
        if file.name != "labels.txt":
            file.unlink()
    with pytest.raises(FileNotFoundError, match="and there is no other model in it"):
        opening.load(tmp_path)

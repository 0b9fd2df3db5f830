"""Slices of the plan: a worker needs its task's file and the images, no database, no TensorFlow, little memory."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import google_crc32c
import pytest
from conftest import CHECKOUT, make_image, write

from tfpipe.building.slices import Row, read_slice, write_slice
from tfpipe.common.errors import DataError
from tfpipe.records import schema, tfrecord

WORKER = """
import json, pathlib, sys
sys.modules.update(dict.fromkeys(("sqlite3", "tensorflow", "numpy")))  # importing these fails
from tfpipe.building import tasks
images = [(0, "file", sys.argv[1], 0)]
((_, found),) = tasks.audit(tasks.AuditTask(images, 1000), lambda *done: None)
shard = tasks.write_shard(tasks.ShardTask(sys.argv[2], sys.argv[2], "train", 0, "x", 0, 1), lambda *done: None)
status = pathlib.Path("/proc/self/status")  # getrusage counts what the process was before it became this program
lines = status.read_text().splitlines() if status.exists() else ["VmHWM: 0"]
peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
print(json.dumps([found.sha256, shard.num_records, *peaks]))
"""


def row_of(path):
    data = path.read_bytes()
    crc, digest = google_crc32c.value(data), hashlib.sha256(data).hexdigest()
    return Row("file", str(path), 0, crc, "JPEG", 20, 30, 3, 1, "ä.jpg", "a/ä.jpg", digest, 2, 'c, "d"')


def test_a_worker_has_all_it_needs_in_its_slice(tmp_path):
    write(tmp_path / "ä.jpg", make_image(1, (30, 20)))
    row = row_of(tmp_path / "ä.jpg")
    (tmp_path / "index").mkdir()
    write_slice(tmp_path / "x.slice", [row])
    command = [sys.executable, "-c", WORKER, row.path, tmp_path]
    done = subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, text=True)
    sha256, num_records, peak_kb = json.loads(done.stdout)
    (frame,) = tfrecord.read_frames(tmp_path / "x")
    stored = schema.decode(frame.data)
    assert (sha256, num_records) == (row.sha256, 1)
    assert (stored.encoded, stored.key, stored.label, stored.class_name) == (Path(row.path).read_bytes(), row.key, 2, 'c, "d"')
    assert peak_kb < 100_000, "of the 200 MB that a worker may take, images are the larger part"


def test_a_damaged_slice_is_named(tmp_path):
    path = tmp_path / "x.slice"
    row = Row("file", "p", 0, 1, "JPEG", 1, 1, 3, 1, "f", "k", "0" * 64, -1, "")
    write_slice(path, [row, row])
    assert list(read_slice(path)) == [row, row]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"x\.slice: a damaged part of the plan"):
        list(read_slice(path))

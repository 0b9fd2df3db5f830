"""The workers' tasks: audit images, and write one shard with bytes unchanged."""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import google_crc32c

from tfpipe.building.inputs import hdf5, prepared
from tfpipe.building.slices import read_slice
from tfpipe.common.errors import DataError, RejectedImage
from tfpipe.common.files import read_bytes, written_atomically
from tfpipe.images import headers
from tfpipe.images.headers import ImageHeader
from tfpipe.listing import conversion, image_files
from tfpipe.records import schema, tfrecord
from tfpipe.records.catalog import COLUMNS, FRAME
from tfpipe.records.manifest import Shard, index_file
from tfpipe.records.samples import MAX_BITS

Report = Callable[[int, int], None]  # records and bytes done since the last call

_REPORT_RECORDS = 16
_MAX_IMAGE_BYTES = (1 << 31) - (1 << 20)  # protobuf ends at 2 GiB, and the other features need some room
_CONVERTIBLE = ("other_format", "animated", "unsupported_coding")  # reasons why a file may be converted
_FIVE_BITS = 16  # levels: four bits hold as many
_CHANGED = "Put the file back as it was and run the same build again, or delete the output folder to start over"


def read_image(kind: str, path: str, place: int) -> bytes:
    """Returns an image's encoded bytes; arguments as in `items.Source`."""
    if kind == "file":
        return read_bytes(path)
    return hdf5.read_image(path, place) if kind == "hdf5" else prepared.read_image(path, place)


class AuditTask(NamedTuple):
    """Images to audit: (row id, kind, path, place) of each; `decode` as in `read_header`.

    With `high_bytes`, checks that the high bytes of a 16-bit PNG, which readers will use, hold an
    image. `converter` is the software that makes PNG of other formats, on whichever machine.
    """

    images: list[tuple[int, str, str, int]]
    max_pixels: int
    decode: bool = False
    high_bytes: bool = False
    converter: str | None = None

    @property
    def name(self) -> str:
        """What no other task of a build is called."""
        return f"{self.images[0][0]:012d}"


class Audited(NamedTuple):
    """Findings about one image; the fields are columns of the state.

    `traits` names what readers lose: "deep" (16 bits), "dim" (and hardly anything in the high
    bytes), "transparent", "profile"; and "first", if a file had more images than the one converted.
    `source_format` and `source_sha256` are of a file that was converted; all else of the PNG.
    """

    sha256: str | None = None
    crc32c: int | None = None
    image_bytes: int = 0
    format: str | None = None
    height: int | None = None
    width: int | None = None
    channels: int | None = None
    orientation: int | None = None
    color: str | None = None
    traits: str = ""
    reason: str | None = None
    message: str | None = None
    source_format: str | None = None
    source_sha256: str | None = None


def audit(task: AuditTask, report: Report) -> list[tuple[int, Audited]]:
    """Returns (row id, findings) of each image; raises DataError if this machine converts by other software."""
    if task.converter not in (None, here := conversion.versions()):
        raise DataError(f"the build converts images by {task.converter}, and this machine has {here}: install the same on all")
    found = [(row, _audit_one(task, kind, path, place)) for row, kind, path, place in task.images]
    report(len(found), sum(audited.image_bytes for _, audited in found))
    return found


def _audit_one(task: AuditTask, kind: str, path: str, place: int) -> Audited:
    try:
        data, num_bytes = (
            image_files.read_start(path, _MAX_IMAGE_BYTES, convert=task.converter is not None) if kind == "file" else (b"", 0)
        )
        data = data if kind == "file" else read_image(kind, path, place)
    except RejectedImage as error:
        return Audited(reason=error.reason, message=error.message)
    except OSError as error:
        return Audited(reason="unreadable", message=error.strerror or str(error))
    except DataError as error:
        if kind != "file":  # damage inside a file of many images is not one image's
            raise
        return Audited(reason="unreadable", message=error.message)
    is_whole = kind != "file" or len(data) >= num_bytes
    digest = hashlib.sha256(data).hexdigest() if is_whole else None
    try:
        data, header, made = _read_header(data, task)
    except RejectedImage as error:
        return Audited(digest, image_bytes=len(data) if is_whole else num_bytes, reason=error.reason, message=str(error))
    return Audited(
        hashlib.sha256(data).hexdigest() if made else digest,
        google_crc32c.value(data),
        len(data),
        header.format,
        header.height,
        header.width,
        header.channels,
        header.orientation,
        header.color,
        _traits(data, header, made, high_bytes=task.high_bytes),
        source_format=made and made.format,
        source_sha256=made and made.sha256,
    )


def _read_header(data: bytes, task: AuditTask) -> tuple[bytes, ImageHeader, conversion.Converted | None]:
    """Returns the bytes to pack of a file, their header, and the file's conversion, if it needs one."""
    try:
        header = headers.read_header(data, max_pixels=task.max_pixels, decode=task.decode)
        if not header.animated:
            return data, header, None
        raise RejectedImage("animated", "an animated PNG; a still image is expected")
    except RejectedImage as error:
        name = conversion.format_of(data) if error.reason in _CONVERTIBLE else None
        if name is None:
            raise
        if task.converter is None:
            what = "its first image" if error.reason == "animated" else "it"
            needs = " (needs tfpipe[heif])" if name in conversion.HEIF else ""
            message = f"{error.message}. To pack {what} as PNG: --convert=png{needs}"
            raise RejectedImage(error.reason, message, offset=error.offset) from None
    made = conversion.to_png(data, task.max_pixels)
    return made.data, headers.read_header(made.data, max_pixels=task.max_pixels), made


def _traits(data: bytes, header: ImageHeader, made: conversion.Converted | None, *, high_bytes: bool) -> str:
    is_deep = header.precision == MAX_BITS  # no JPEG that is accepted has so many
    is_declared = 0 < header.significant_bits < MAX_BITS  # then readers take those
    found = {
        "deep": is_deep,
        "dim": is_deep and high_bytes and not is_declared and _is_dim(data),
        "transparent": header.transparent,
        "profile": header.has_profile,
        "first": made is not None and made.is_first,
    }
    return " ".join(word for word, is_so in found.items() if is_so)


def _is_dim(data: bytes) -> bool:
    """True where fewer than 5 bits hold the high bytes of a 16-bit PNG's colours."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the caller's limit holds
        try:
            with Image.open(io.BytesIO(data)) as image:
                extrema: Any = image.getextrema()
        except Exception:  # whatever a decoder raises: damage is reported elsewhere
            return False
    if isinstance(extrema[0], tuple):  # colours, and perhaps alpha, of which Pillow takes the high bytes
        extrema = min(low for low, _ in extrema[:3]) * 256, max(high for _, high in extrema[:3]) * 256
    return bool(extrema[1] // 256 - extrema[0] // 256 < _FIVE_BITS)


class ShardTask(NamedTuple):
    """One shard to write: the records of its slice of the plan, which lies in `folder`."""

    directory: str
    folder: str  # of the build's own files
    split: str
    shard_index: int
    file: str
    start: int  # of the records [start, end) of the split, in the order of the plan
    end: int
    optional: tuple[str, ...] = ()  # columns of the catalog

    @property
    def name(self) -> str:
        """What no other task of a build is called."""
        return self.file

    @property
    def slice(self) -> Path:
        """The file of the slice."""
        return Path(self.folder, f"{self.file}.slice")


def write_shard(task: ShardTask, report: Report) -> Shard:
    """Writes a shard, its index, its catalog rows and its frames, each synced and renamed into place.

    Raises DataError if an image is not as audited, OSError if the disk is full or the like.
    """
    directory, folder = Path(task.directory), Path(task.folder)
    output, index = _HashedFile(), _HashedFile()
    with contextlib.ExitStack() as stack:
        # Left in reverse order: the shard gets its name when all files about it are written.
        output.file = stack.enter_context(written_atomically(directory / task.file))
        index.file = stack.enter_context(written_atomically(directory / index_file(task.file)))
        part = stack.enter_context(written_atomically(folder / f"{task.file}.csv"))
        frames = stack.enter_context(written_atomically(folder / f"{task.file}.frames"))
        catalog = csv.writer(codecs.getwriter("utf-8")(part), lineterminator="\n")
        unreported = 0  # bytes
        for position, (record, crc, source) in enumerate(_planned(task)):
            if google_crc32c.value(record.encoded) != crc:
                how = "" if record.source_format is None else ", or converted by other software"
                raise DataError(f"changed since the audit{how}. {_CHANGED}", path=source)
            start, pieces = output.num_bytes, tfrecord.frame(schema.encode(record))
            output.write(*pieces)
            index.write(f"{start} {output.num_bytes - start}\n".encode())
            crc32c = int.from_bytes(pieces[2], "little")
            here = {"split": task.split, "shard": task.shard_index, "position": position, "crc32c": crc32c}
            frames.write(FRAME.pack(start, output.num_bytes - start, crc32c, record.label))
            catalog.writerow(here[name] if name in here else getattr(record, name) for name in (*COLUMNS, *task.optional))
            unreported += len(record.encoded)
            if position % _REPORT_RECORDS == _REPORT_RECORDS - 1 or position == task.end - task.start - 1:
                report(position % _REPORT_RECORDS + 1, unreported)
                unreported = 0
        shard = Shard(task.file, task.end - task.start, output.num_bytes, output.sha256(), index.sha256())
        note = stack.enter_context(written_atomically(folder / f"{task.file}.json"))
        note.write(json.dumps(dataclasses.asdict(shard)).encode())
    return shard


class _HashedFile:
    """Counts and hashes what goes into a file."""

    file: BinaryIO

    def __init__(self) -> None:
        self.num_bytes = 0
        self._hash = hashlib.sha256()

    def write(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.file.write(piece)
            self._hash.update(piece)
            self.num_bytes += len(piece)

    def sha256(self) -> str:
        return self._hash.hexdigest()


def _planned(task: ShardTask) -> Iterator[tuple[schema.Record, int, str]]:
    """Yields (record, CRC of its image, path it came from) in the order of the plan."""
    for row in read_slice(task.slice):
        try:
            data = read_image(row.kind, row.path, row.place)
        except OSError as error:
            raise DataError(f"cannot be read any more ({error.strerror}). {_CHANGED}", path=row.path) from None
        if row.source_format is not None:
            data = conversion.to_png(data, headers.TENSORFLOW_MAX_PIXELS).data
        yield schema.Record(data, *row[4:]), row.crc32c, row.path

"""HDF5 files of uint8 images and labels, as in course assignments; stored as PNG.

Expected: one array uint8 [N, H, W], [N, H, W, 1], [N, H, W, 3] or [N, H, W, 4], one integer array
of N labels, and, optionally, `list_classes` with the classes' names in the order of their labels.
h5py and numpy are imported where an array is read.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tfpipe.building.inputs.items import Source, SourceList
from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular
from tfpipe.common.text import exactly

_CLASSES = "list_classes"
_MAX_CLASSES = 100_000  # without names for them; one label of a billion is damage, and would fill the memory


def list_arrays(path: Path, split: str | None) -> SourceList:
    """Returns the images of one file; keys are "FILE#000042".

    Raises DataError unless it is HDF5, with exactly one array of images and one of labels in
    itself.
    """
    with _opened(path) as file:
        labels = _labels(file, path, _images(file, path).shape[0])
        names = _class_names(file, path, labels)
    status = path.stat()
    facts = status.st_size, status.st_mtime_ns
    items = (
        Source(f"{path.name}#{row:06d}", "", split, names[label], "hdf5", str(path), row, *facts)
        for row, label in enumerate(labels)
    )
    return SourceList(items, names)


def read_image(path: str, row: int) -> bytes:
    """Returns one image as the bytes of a PNG file.

    Equal pixels give equal bytes with equal versions of Pillow, whose bundled zlib decides on them.
    """
    from PIL import Image

    pixels = _kept_open(path)[row]
    pixels = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=6)
    return out.getvalue()


@functools.lru_cache(maxsize=4)  # in a worker, which ends with the build
def _kept_open(path: str) -> Any:
    return _images(_opened(Path(path)), Path(path))


def _opened(path: Path) -> Any:
    import h5py

    open_regular(path).close()  # HDF5 would wait for a pipe, or for a file of /proc
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"cannot be read as HDF5 ({error})", path=path) from None


def _arrays(file: Any, path: Path, what: str, fits: Callable[[str, Any], bool]) -> list[Any]:
    """Returns the arrays that fit; where `what` names one, there must be exactly one."""
    import h5py

    arrays: dict[str, Any] = {}
    file.visititems(lambda name, item: arrays.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    fitting = [array for name, array in arrays.items() if fits(name, array)]
    if what and len(fitting) != 1:
        shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items()) or "no arrays"
        raise DataError(f"must hold exactly one {what}; it holds {shapes}", path=path)
    for array in fitting[:1]:
        if array.external or array.is_virtual:  # could be any file of the machine
            raise DataError(f"array {array.name!r} lies in other files: copy it into this one", path=path)
    return fitting


def _images(file: Any, path: Path) -> Any:
    def fits(_: str, array: Any) -> bool:
        is_image = array.ndim == 3 or (array.ndim == 4 and array.shape[3] in (1, 3, 4))
        return bool(array.dtype == "uint8" and array.size and is_image)

    return _arrays(file, path, "uint8 array of images [N, H, W, channels]", fits)[0]


def _labels(file: Any, path: Path, count: int) -> list[int]:
    def fits(name: str, array: Any) -> bool:
        return array.dtype.kind in "iu" and array.size == count and array.ndim <= 2 and not name.endswith(_CLASSES)

    (labels,) = _arrays(file, path, f"array of {exactly(count, 'integer label')}", fits)
    return [int(label) for label in labels[()].ravel()]


def _class_names(file: Any, path: Path, labels: Sequence[int]) -> list[str]:
    arrays = _arrays(file, path, "", lambda name, _: name.endswith(_CLASSES))
    if arrays:
        names = [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in arrays[0][()].ravel()]
    else:
        names = [str(label) for label in range(min(max(labels, default=-1) + 1, _MAX_CLASSES))]
    outside = sorted({label for label in labels if not 0 <= label < len(names)})
    if outside:
        known = exactly(len(names), "class", "classes")
        raise DataError(f"labels {outside[:5]} have no name: there are {known}, counted from 0", path=path)
    return names

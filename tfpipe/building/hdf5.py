"""HDF5 files of uint8 images and labels, as course assignments hand them out; stored as PNG, without loss.

Expected: one array uint8 [N, H, W], [N, H, W, 1], [N, H, W, 3] or [N, H, W, 4], one integer array of N labels, and, optionally,
`list_classes` with the classes' names in the order of their labels. h5py and numpy are imported where an array is read.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tfpipe.building.items import Source, SourceList
from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular
from tfpipe.common.text import exactly

_CLASSES = "list_classes"
_MAX_CLASSES = 100_000  # without names for them; one label of a billion is damage, and would fill the memory


def list_arrays(path: Path, split: str | None) -> SourceList:
    """Returns the images of one file; keys are "FILE#000042".

    Raises:
        DataError: the file is not HDF5, or does not itself hold exactly one array of images and one of labels.
    """
    with _opened(str(path)) as file:
        images = _images(file, path)
        labels = _labels(file, path, images.shape[0])
        class_names = _class_names(file, path, labels)
    return SourceList(_items(path, split, [class_names[label] for label in labels]), class_names)


def _items(path: Path, split: str | None, class_names: Sequence[str]) -> Iterator[Source]:
    status = path.stat()
    for row, class_name in enumerate(class_names):
        key = f"{path.name}#{row:06d}"
        yield Source(key, "", split, class_name, "hdf5", str(path), row, status.st_size, status.st_mtime_ns)


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


@functools.lru_cache(maxsize=4)  # in a worker, which ends with the build; the caller's own process keeps nothing open
def _kept_open(path: str) -> Any:
    return _images(_opened(path), Path(path))


def _opened(path: str) -> Any:
    import h5py

    open_regular(path).close()  # HDF5 would wait for a pipe, or for a file of /proc
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"cannot be read as HDF5 ({error})", path=path) from None


def _arrays(file: Any) -> dict[str, Any]:
    import h5py

    found: dict[str, Any] = {}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return found


def _within(array: Any, path: Path) -> Any:
    """Returns an array that the file itself holds: another's could be any file of the machine."""
    if array.external or array.is_virtual:
        raise DataError(f"array {array.name!r} lies in other files: copy it into this one", path=path)
    return array


def _images(file: Any, path: Path) -> Any:
    arrays = _arrays(file)
    fitting = [
        array
        for array in arrays.values()
        if array.dtype == "uint8" and array.size and (array.ndim == 3 or (array.ndim == 4 and array.shape[3] in (1, 3, 4)))
    ]
    if len(fitting) != 1:
        raise DataError(
            f"must hold exactly one uint8 array of images [N, H, W, channels]; it holds {_shapes(arrays)}", path=path
        )
    return _within(fitting[0], path)


def _labels(file: Any, path: Path, count: int) -> list[int]:
    arrays = _arrays(file)
    fitting = [
        array
        for name, array in arrays.items()
        if array.dtype.kind in "iu" and array.size == count and array.ndim <= 2 and not name.endswith(_CLASSES)
    ]
    if len(fitting) != 1:
        raise DataError(
            f"must hold exactly one array of {exactly(count, 'integer label')}; it holds {_shapes(arrays)}", path=path
        )
    return [int(label) for label in _within(fitting[0], path)[()].ravel()]


def _class_names(file: Any, path: Path, labels: Sequence[int]) -> list[str]:
    arrays = [array for name, array in _arrays(file).items() if name.endswith(_CLASSES)]
    if arrays:
        names = [x.decode("utf-8", "replace") if isinstance(x, bytes) else str(x) for x in _within(arrays[0], path)[()].ravel()]
    else:
        names = [str(label) for label in range(min(max(labels, default=-1) + 1, _MAX_CLASSES))]
    outside = sorted({label for label in labels if not 0 <= label < len(names)})
    if outside:
        raise DataError(
            f"labels {outside[:5]} have no name: there are {exactly(len(names), 'class', 'classes')}, counted from 0", path=path
        )
    return names


def _shapes(arrays: dict[str, Any]) -> str:
    return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items()) or "no arrays"

# mypy: disable-error-code="import-not-found"
"""Contenders of other libraries, each with the packages that its function imports."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfpipe.tools.benchmarks.worker import Pass, Task

_AREA, _ASPECT_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def dali(task: Task) -> Pass:
    """DALI on the processor: decodes the crop alone; its resize is antialiased by default."""
    return _dali(task, antialias=True)


def dali_bilinear(task: Task) -> Pass:
    """DALI on the processor, with a plain bilinear resize."""
    return _dali(task, antialias=False)


def ffcv(task: Task) -> Pass:
    """FFCV: re-encoded once (JPEG, quality 90, not made smaller), decodes the crop alone."""
    from ffcv.fields import RGBImageField
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor
    from ffcv.writer import DatasetWriter

    file = os.path.join(task.scratch, "photos.beton")
    field = RGBImageField(write_mode="jpg", jpeg_quality=90)
    DatasetWriter(file, {"image": field}, num_workers=task.workers).from_indexed_dataset(Photos(task.photos))
    crop = RandomResizedCropRGBImageDecoder((task.side, task.side), scale=_AREA, ratio=_ASPECT_RATIO)
    loader = Loader(
        file,
        batch_size=task.batch_size,
        num_workers=task.workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=False,
        pipelines={"image": [crop, RandomHorizontalFlip(), ToTensor()]},
    )
    return lambda: (batch[0] for batch in loader)


def torch(task: Task) -> Pass:
    """PyTorch's DataLoader with Pillow and torchvision, processes kept between passes."""
    from torch.utils.data import DataLoader
    from torchvision import transforms

    crop = transforms.RandomResizedCrop(task.side, scale=_AREA, ratio=_ASPECT_RATIO)
    steps = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.PILToTensor()])
    photos: Any = Photos(task.photos, steps)
    loader = DataLoader(photos, task.batch_size, shuffle=True, num_workers=task.workers, persistent_workers=True)
    return lambda: (batch[0] for batch in loader)


def simplejpeg_full(task: Task) -> Pass:
    """libjpeg-turbo alone: decodes all, resizes nothing; a ceiling for such pipelines."""
    return _simplejpeg(task)


def simplejpeg_scaled(task: Task) -> Pass:
    """libjpeg-turbo alone: decodes at the least sufficient eighth, resizes nothing."""
    return _simplejpeg(task, min_height=task.side, min_width=task.side)


class Photos:
    """Photos by position, each as a tuple of one: what map-style loaders read."""

    def __init__(self, paths: list[str], transform: Callable[[Any], Any] | None = None) -> None:
        self._paths, self._transform = paths, transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Any]:
        from PIL import Image

        with Image.open(self._paths[index]) as image:
            rgb = image.convert("RGB")
        return (self._transform(rgb) if self._transform else rgb,)


def _dali(task: Task, *, antialias: bool) -> Pass:
    from nvidia.dali import fn, pipeline_def

    depth = 2  # batches in flight: DALI's default

    @pipeline_def(batch_size=task.batch_size, num_threads=task.workers, device_id=None, prefetch_queue_depth=depth)  # type: ignore[untyped-decorator, unused-ignore]
    def pipeline() -> Any:
        encoded, _ = fn.readers.file(files=task.photos, random_shuffle=True)
        crop = {"random_area": _AREA, "random_aspect_ratio": _ASPECT_RATIO}
        images = fn.decoders.image_random_crop(encoded, use_fast_idct=True, **crop)
        images = fn.resize(images, size=[task.side, task.side], antialias=antialias)
        return fn.flip(images, horizontal=fn.random.coin_flip())

    running = pipeline()
    num_steps = len(task.photos) // task.batch_size

    def take() -> Any:
        (batch,) = running.share_outputs()
        running.release_outputs()
        return batch

    def batches() -> Iterator[Any]:
        # Its run() always works ahead, also past the pass, where other contenders are measured: so
        # scheduled by hand.
        for _ in range(min(depth, num_steps)):
            running.schedule_run()
        for step in range(num_steps):
            yield take()
            if step + depth < num_steps:
                running.schedule_run()

    running.schedule_run()  # the first call alone schedules `depth` batches
    for _ in range(depth):
        take()
    return batches


def _simplejpeg(task: Task, **options: int) -> Pass:
    from simplejpeg import decode_jpeg

    def decode(path: str) -> Any:
        with open(path, "rb", buffering=0) as file:
            return decode_jpeg(file.read(), fastdct=True, **options)

    pool = ThreadPoolExecutor(task.workers)

    def batches() -> Iterator[list[Any]]:
        paths = iter(task.photos)
        ahead: list[Any] = []
        while batch := [pool.submit(decode, path) for path in itertools.islice(paths, task.batch_size)]:
            if ahead:
                yield [future.result() for future in ahead]
            ahead = batch
        yield [future.result() for future in ahead]

    return batches

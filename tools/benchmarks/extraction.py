# mypy: disable-error-code="import-not-found"
"""Contenders of `benchmark.py extract`: photos -> features of a frozen network, in memory.

All of them decode, bring to the same size, preprocess and compute, with the same layers; PyTorch's
have weights of their own, which makes no difference to time.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfpipe.tools.benchmarks.worker import Pass, Task

_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # filters; 0: pooling


def tfpipe_extract(task: Task) -> Pass:
    """The cache of features, made and read in every pass, in the precision chosen here."""
    from tfpipe.networks import arithmetic

    return _tfpipe(task, arithmetic.choose("auto")[0])


def tfpipe_extract_float32(task: Task) -> Pass:
    """The same in float32."""
    return _tfpipe(task, "float32")


def keras_extract(task: Task) -> Pass:
    """Keras as its guides show it, float32: a reader of folders, preprocess_input, predict."""
    import keras
    import tensorflow as tf
    from tensorflow_inputs import read_folder

    backbone = _build(task)

    def preprocess(images: Any) -> Any:
        if backbone.preprocessing == "unit":
            return images / 255.0
        return keras.applications.imagenet_utils.preprocess_input(images, mode=backbone.preprocessing)

    images = read_folder(task, (task.side, task.side), shuffle=False)
    if backbone.preprocessing != "none":
        images = images.map(preprocess, num_parallel_calls=tf.data.AUTOTUNE)
    images = images.prefetch(tf.data.AUTOTUNE)
    return lambda: [backbone.network.predict(images, verbose=0)]


def torch_extract(task: Task) -> Pass:
    """PyTorch in bfloat16, channels last: Pillow in DataLoader processes, inference mode."""
    return _torch(task, compiled=False)


def torch_extract_compiled(task: Task) -> Pass:
    """The same, compiled and with packed weights; needs a C++ compiler."""
    return _torch(task, compiled=True)


def _build(task: Task) -> Any:
    from tfpipe.networks import backbones

    return backbones.build(task.backbone, image_size=(task.side, task.side), weights=task.weights)


def _tfpipe(task: Task, policy: str) -> Pass:
    import numpy as np

    from tfpipe.models import features
    from tfpipe.models.split_images import SplitImages
    from tfpipe.networks import heads, layers

    with heads.dtype_policy(policy):
        backbone = _build(task)
        preprocessing = layers.Preprocessing(backbone.preprocessing)
    images = SplitImages(task.shards, "train", (task.side, task.side))
    options: dict[str, Any] = {"view": None, "batch_size": task.batch_size, "progress": False}

    def extract() -> Iterator[Any]:
        with tempfile.TemporaryDirectory(dir=task.scratch) as cache:
            found = features.extract(Path(cache), backbone.network, preprocessing, images, **options)
            yield found.rows(np.arange(images.num_records))

    return extract


def _torch(task: Task, *, compiled: bool) -> Pass:
    import numpy as np
    import torch
    from peer_inputs import Photos
    from torch.utils.data import DataLoader

    if task.backbone != "vgg16":
        raise ValueError(
            f"PyTorch's contenders are written for vgg16 (got --backbone={task.backbone}): leave them out with --only"
        )
    torch.set_num_threads(task.workers)
    network: Any = _make_vgg16().to(torch.bfloat16, memory_format=torch.channels_last).eval()
    if compiled:
        torch._inductor.config.freezing = True
        network = torch.compile(network)
    mean = torch.tensor([103.939, 116.779, 123.68])

    def decode(image: Any) -> Any:
        return torch.from_numpy(np.array(image.resize((task.side, task.side), 2)))  # 2: bilinear, antialiased

    def compute(images: Any) -> Any:
        values = (images.flip(-1).float() - mean).to(torch.bfloat16).permute(0, 3, 1, 2)  # channels last, as it was
        return network(values).permute(0, 2, 3, 1).contiguous().view(torch.int16).numpy()

    photos: Any = Photos(task.photos, decode)
    loader = DataLoader(photos, task.batch_size, num_workers=task.workers, persistent_workers=True)

    def extract() -> Iterator[Any]:
        with torch.inference_mode():
            yield np.concatenate([compute(batch) for (batch,) in loader])

    return extract


def _make_vgg16() -> Any:
    from torch import nn

    layers: list[Any] = []
    channels = [3, *filter(None, _VGG16)]
    sizes = itertools.pairwise(channels)
    for filters in _VGG16:
        if filters:
            convolution = nn.Conv2d(*next(sizes), 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight)  # values that neither vanish nor overflow
            layers += [convolution, nn.ReLU(inplace=True)]
        else:
            layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)

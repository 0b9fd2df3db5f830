"""Test-time augmentation: the mean of a model's probabilities for several views of an image.

    way = find("five", "runs/a")                # or "flip", or a number of views: "8"
    views(images, way)                          # uint8 [B, H, W, 3] -> [V * B, H, W, 3], view after view
    averaged(predictor, way).predict(images)    # float32 [B, C]

flip: the image and its mirror image. five: 7/8 of each side, from the centre and the four corners.
N: the image, and N - 1 views with the crops, flips and colours of the run's augmentation, drawn
once from a fixed seed; not its rotation, erasing and mixing. All images get the same views, so that
a result depends on the image alone: a graph that was exported sees pixels, and no keys.

Views are made of the model's input: cut out, resized back (bilinear) and rounded. All programs and
devices give the same bits: each weight is a whole number of 1/256 or 1/512, so that float32 holds
every product and sum exactly, in any order. The operations are those of any format of an export.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NotRequired, TypedDict

from tfpipe.common import arguments
from tfpipe.common.errors import DataError
from tfpipe.common.files import load_json
from tfpipe.pipeline.presets import Augmentation
from tfpipe.records import folds
from tfpipe.records.manifest import PROBABILITIES, VALUES
from tfpipe.records.run_folders import RUN_NAME

if TYPE_CHECKING:
    from tfpipe.models.classifiers import Predictor

MAX_VIEWS = 64
FIVE_SHARE = 7 / 8  # of each side: 224 of 256, the usual centre crop of ImageNet's networks
_NAMED = {"flip": 2, "five": 5}
_WANTED = f"flip, five or a number of views from 2 to {MAX_VIEWS}"
_SEED = 0
_POSITION_UNIT, _COLOUR_UNIT, _MEAN_UNIT = 256, 512, 4
_MEAN_SIDE = 16  # pixels a side of which the mean colour is taken; powers of 2, by which division is exact


class _Run(TypedDict):
    recipe: dict[str, Any]
    chosen: NotRequired[dict[str, Any]]


@dataclass(frozen=True)
class Tta:
    """Which views are averaged.

    Attributes:
        name: "flip", "five" or a number of views.
        augmentation: of which a number of views is drawn, else None.
    """

    name: str
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        if self.name not in _NAMED and not (self.name.isdecimal() and 2 <= int(self.name) <= MAX_VIEWS):
            raise arguments.wrong("tta", _WANTED, self.name, arguments.nearest(self.name, _NAMED))

    def __str__(self) -> str:
        return self.name if self.augmentation is None else f"{self.name} of {self.augmentation}"

    @property
    def num_views(self) -> int:
        """Views for each image."""
        return _NAMED.get(self.name) or int(self.name)

    def facts(self) -> dict[str, Any]:
        """Returns the entry of JSON files."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def check(tta: str | int | Tta | None) -> Tta | None:
    """Returns what an argument `tta` names, without an augmentation; None for None.

    Raises:
        ValueError: another word or number.
    """
    if tta is None or isinstance(tta, Tta):
        return tta
    if not isinstance(tta, str | int) or isinstance(tta, bool):
        raise arguments.wrong("tta", _WANTED, tta)
    return Tta(str(tta))


def find(tta: str | int | Tta | None, *models: Any) -> Tta | None:
    """Returns the views that an argument `tta` names; None for None.

    Args:
        tta: "flip", "five" or a number of views.
        models: where the augmentation is looked for that a number of views is drawn from: the path
            of a run, or of the folder of `train_folds` (its first run), or a loaded model of an export
            that averages as many.

    Raises:
        ValueError: another word or number, or the model has no augmentation to draw from.
        DataError: run.json is damaged.
    """
    way = check(tta)
    if way is None or way.name in _NAMED or way.augmentation is not None:
        return way
    augmentation = next(filter(None, (_augmentation_of(model, way.name) for model in models)), None)
    if augmentation is None:
        advice = "give the run's folder, or tta=flip or five"
        raise ValueError(f"tta={way.name}: a number of views is drawn from the augmentation of a run, not known here: {advice}")
    if not (augmentation.crop or augmentation.horizontal_flip or augmentation.vertical_flip or augmentation.colour):
        raise ValueError(f"tta={way.name}: the run's augmentation ({augmentation}) has no crop, flip or colour to draw")
    return Tta(way.name, augmentation)


def _augmentation_of(model: Any, name: str) -> Augmentation | None:
    if not isinstance(model, str | os.PathLike):
        known: Tta | None = getattr(getattr(model, "specification", None), "tta", None)
        return known.augmentation if known is not None and known.name == name else None
    folder = Path(model) if Path(model).is_dir() else Path(model).parent
    if folds.is_folder(folder):
        folder /= folds.load(folder)[1][0].held_out
    path = folder / RUN_NAME
    if not path.exists():
        return None
    facts = load_json(path, _Run)
    found = (facts["recipe"] | facts.get("chosen", {})).get("augment") or "none"
    try:
        return Augmentation(**found) if isinstance(found, dict) else Augmentation.named(found)
    except (TypeError, ValueError) as error:
        raise DataError(f"its augmentation cannot be read: {error}", path=path) from None


# ---- views


class _View(NamedTuple):
    """One view; `colour`, `mean` and `brightness` as `draw_changes` returns them, in 1/4096."""

    window: tuple[int, int, int, int]  # top, left, height, width
    mirrored: bool = False
    upside_down: bool = False
    colour: Any = None
    mean: Any = None
    brightness: Any = 0


def views(images: Any, tta: Tta) -> Any:
    """Returns the views of a batch, view after view: uint8 [B, H, W, 3] -> uint8 [V * B, H, W, 3]."""
    import tensorflow as tf

    listed = _views_of(tta, *images.shape[1:3])
    return tf.concat([_seen(images, view) for view in listed], axis=0)


def _views_of(tta: Tta, height: int, width: int) -> list[_View]:
    whole = (0, 0, height, width)
    if tta.name == "flip":
        return [_View(whole), _View(whole, mirrored=True)]
    if tta.name == "five":
        high, wide = (max(1, round(side * FIVE_SHARE)) for side in (height, width))
        bottom, right = height - high, width - wide
        corners = [(bottom // 2, right // 2), (0, 0), (0, right), (bottom, 0), (bottom, right)]
        return [_View((top, left, high, wide)) for top, left in corners]
    return [_View(whole), *_draw(tta, height, width)]


def _draw(tta: Tta, height: int, width: int) -> list[_View]:
    import tensorflow as tf

    from tfpipe.pipeline.augmentation import draw_changes
    from tfpipe.pipeline.counter_rng import hash_keys

    if tta.augmentation is None:
        raise ValueError(f"tta={tta.name} needs an augmentation")
    count = tta.num_views - 1
    with tf.init_scope():  # of no graph: what is drawn are constants
        keys = hash_keys(tf.constant([f"view {number}" for number in range(1, count + 1)]))
        epochs, sources = tf.zeros([count], tf.int64), tf.tile([[height, width]], [count, 1])
        drawn = draw_changes(
            tta.augmentation, (height, width), "stretch", keys=keys, seed=_SEED, epochs=epochs, sources=sources
        )
        changes = {name: value.numpy() for name, value in drawn.items()}
    if not tta.augmentation.crop:
        changes["window"] = [(0, 0, height, width)] * count
    names = [name for name in _View._fields if name in changes]
    return [_View(**{name: changes[name][index] for name in names}) for index in range(count)]


def _seen(images: Any, view: _View) -> Any:
    import tensorflow as tf

    top, left, height, width = map(int, view.window)
    full_height, full_width = images.shape[1:3]
    if (height, width) == (full_height, full_width):
        for axis, turned in ((1, view.upside_down), (2, view.mirrored)):
            if turned:
                images = tf.gather(images, list(range(images.shape[axis]))[::-1], axis=axis)
        levels = tf.cast(images, tf.float32)
    else:
        rows = _sampled(tf.cast(images, tf.float32), 1, top, height, turned=view.upside_down)
        levels = _rounded(_sampled(rows, 2, left, width, turned=view.mirrored))
    if view.colour is None:
        return tf.cast(levels, tf.uint8)
    return tf.cast(_coloured(levels, view), tf.uint8)


def _sampled(levels: Any, axis: int, start: int, length: int, *, turned: bool) -> Any:
    """Resizes `length` rows or columns to all, as `sample_image` does, by weights in 1/256."""
    import tensorflow as tf

    size = levels.shape[axis]
    places = [min(max((index + 0.5) * length / size - 0.5, 0.0), length - 1.0) for index in range(size)]
    places = places[::-1] if turned else places
    lower = [math.floor(place) for place in places]
    shares = [round((place - low) * _POSITION_UNIT) / _POSITION_UNIT for place, low in zip(places, lower, strict=True)]
    shape = [1, size, 1, 1] if axis == 1 else [1, 1, size, 1]
    share = tf.constant(shares, tf.float32, shape)
    before = tf.gather(levels, [start + low for low in lower], axis=axis)
    after = tf.gather(levels, [start + min(low + 1, length - 1) for low in lower], axis=axis)
    return before * (1.0 - share) + after * share


def _coloured(levels: Any, view: _View) -> Any:
    """Applies the colours of an augmentation; its mean colour is that of other pixels."""
    import tensorflow as tf

    def scaled(values: Any) -> list[Any]:
        found: list[Any] = ((values + 4) // 8 / _COLOUR_UNIT).tolist()  # from 1/4096
        return found

    few = levels
    for axis in (1, 2):
        count = 2 ** int(math.log2(min(levels.shape[axis], _MEAN_SIDE)))
        few = tf.gather(few, [(2 * index + 1) * levels.shape[axis] // (2 * count) for index in range(count)], axis=axis)
    means = tf.reduce_sum(few, axis=[1, 2]) * (1.0 / (few.shape[1] * few.shape[2]))
    means = tf.unstack(tf.floor(means * _MEAN_UNIT) * (1.0 / _MEAN_UNIT), axis=-1)
    channels, brightness = tf.unstack(levels, axis=-1), scaled(view.brightness)
    mixed = []
    for colour, mean in zip(scaled(view.colour), scaled(view.mean), strict=True):
        offset = means[0] * mean[0] + means[1] * mean[1] + means[2] * mean[2] + brightness
        level = channels[0] * colour[0] + channels[1] * colour[1] + channels[2] * colour[2]
        mixed.append(level + offset[:, tf.newaxis, tf.newaxis])
    return _rounded(tf.clip_by_value(tf.stack(mixed, axis=-1), 0.0, 255.0))


def _rounded(levels: Any) -> Any:
    import tensorflow as tf

    return tf.floor(levels + 0.5)  # programs disagree on halves in tf.round


# ---- the mean


def mean(by_view: Any, num_views: int) -> Any:
    """Returns the mean of probabilities, float32 [V, B, C] -> [B, C]: sums in the order of the views."""
    total = by_view[0]
    for index in range(1, num_views):
        total = total + by_view[index]
    return total * (1.0 / num_views)


def averaging(function: Any, tta: Tta) -> Any:
    """Returns a function from images to "probabilities" (or "values"), the mean of those of `function`, for graphs."""
    import tensorflow as tf

    def run(images: Any) -> dict[str, Any]:
        outputs = function(views(images, tta))
        name = VALUES if VALUES in outputs else PROBABILITIES
        by_view = tf.reshape(outputs[name], [tta.num_views, -1, outputs[name].shape[-1]])
        return {name: mean(by_view, tta.num_views)}

    return run


@dataclass(frozen=True)
class Averaged:
    """A predictor whose probabilities are means over views; itself a `Predictor`."""

    predictor: Predictor
    tta: Tta

    def __getattr__(self, name: str) -> Any:
        return getattr(self.predictor, name)  # class names, size, hash and the like

    @cached_property
    def _views(self) -> Any:
        import tensorflow as tf

        spec = tf.TensorSpec([None, *self.image_size, 3], tf.uint8)
        return tf.function(lambda images: views(images, self.tta), input_signature=[spec], autograph=False)

    def predict(self, images: Any) -> Any:
        """Returns probabilities, float32 [B, C], of uint8 images [B, H, W, 3].

        As many views as there are images go through the model at once, at least those of one image.
        """
        import numpy as np

        array, step = np.asarray(images), max(1, len(images) // self.tta.num_views)
        parts = []
        for start in range(0, max(1, len(array)), step):
            found = self.predictor.predict(self._views(array[start : start + step]).numpy())
            parts.append(mean(found.reshape(self.tta.num_views, -1, found.shape[-1]), self.tta.num_views))
        return np.concatenate(parts)


def averaged(predictor: Predictor, tta: Tta | None) -> Predictor:
    """Returns a predictor that averages over views, or the predictor itself for None.

    Raises:
        ValueError: it does so already.
    """
    if tta is None:
        return predictor
    if (own := tta_of(predictor)) is not None:
        raise ValueError(f"tta={tta.name}: the model itself averages views already ({own}); leave tta out")
    return Averaged(predictor, tta)


def tta_of(predictor: Predictor) -> Tta | None:
    """Returns the views that a predictor averages, None if it does not."""
    found: Tta | None = getattr(predictor, "tta", None)
    return found

"""Strengths of augmentation, and presets; `tfpipe.pipeline.augmentation` applies them.

augmentation = dataclasses.replace(Augmentation.named("standard"), horizontal_flip=0)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tfpipe.common import arguments


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Strengths of random changes of images; 0 switches an operation off.

    Attributes:
        crop: least share of the image's area that is cut out, the share being uniform in [crop, 1];
            0 takes the whole.
        crop_aspect: the aspect ratio of what is cut out lies in [1 / crop_aspect, crop_aspect],
            uniform in its logarithm.
        horizontal_flip: probability.
        vertical_flip: probability.
        brightness: share of full scale that is added to or taken from all levels, at most.
        contrast: distances from the image's mean colour are multiplied by 1 - contrast to 1 +
            contrast.
        saturation: distances from grey are multiplied by 1 - saturation to 1 + saturation.
        hue: colours are turned by at most this share of the colour circle, either way.
        greyscale: probability.
        rotation: degrees, at most, either way; the corners are filled with a reflection.
        erasing: probability that a rectangle (2 % to 33 % of the area, aspect 0.3 to 3.3) is made
            grey.
        mixup: alpha of the Beta distribution of the weights with which the images of a batch are
            added in pairs (Zhang et al., mixup, ICLR 2018). Labels become probabilities.
        cutmix: the same for the area of a rectangle that is taken from the other image (Yun et al.,
            CutMix, ICCV 2019). With both, each batch has one of them, at even odds.

    Raises:
        ValueError: a strength is out of range.

    >>> dataclasses.replace(Augmentation.named("standard"), horizontal_flip=0)    # for digits,
    text, X-rays, hand signs
    """

    crop: float = 0.0
    crop_aspect: float = 4 / 3
    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    greyscale: float = 0.0
    rotation: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, *arguments.check(**{field.name: getattr(self, field.name)}))

    def __str__(self) -> str:
        on = {name: value for name, value in dataclasses.asdict(self).items() if value and (name != "crop_aspect" or self.crop)}
        return ", ".join(f"{name} {value:.3g}" for name, value in on.items()) or "none"

    @classmethod
    def named(cls, preset: str | Augmentation) -> Augmentation:
        """Returns one of the presets, none, light, standard or strong; an augmentation as it is.

        `standard` is the random crop of Szegedy et al. (Going Deeper with Convolutions, CVPR 2015)
        with a flip and moderate colour changes; `light` keeps at least half of the image and its
        colours nearly; `strong` adds greyscale, rotation and erasing.

        Raises:
            ValueError: there is none of that name.
        """
        if isinstance(preset, Augmentation):
            return preset
        return PRESETS[arguments.choice("augment", preset, PRESETS, or_else="an Augmentation or ")]

    @property
    def colour(self) -> bool:
        """Whether colours are changed."""
        return any((self.brightness, self.contrast, self.saturation, self.hue, self.greyscale))

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return bool(self.mixup or self.cutmix)


_STANDARD = Augmentation(crop=0.08, horizontal_flip=0.5, brightness=0.125, contrast=0.5, saturation=0.5, hue=0.2)
PRESETS = {
    "none": Augmentation(),
    "light": Augmentation(crop=0.5, horizontal_flip=0.5, brightness=0.05, contrast=0.1, saturation=0.1),
    "standard": _STANDARD,
    "strong": dataclasses.replace(_STANDARD, brightness=0.25, greyscale=0.1, rotation=15, erasing=0.25),
}

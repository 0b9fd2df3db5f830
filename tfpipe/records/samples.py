"""Options for samples that 8 bits of RGB do not hold: 16 bits, and transparency.

    Samples.of(manifest.options)    # Samples(png16="high_byte", background="keep") by default

Stored in a data set's manifest, a trained model and its export, and applied wherever pixels are
decoded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tfpipe.common import arguments

Resize = Literal["stretch", "crop", "pad"]  # of what is not cropped, see `tfpipe.resize_image`
RESIZES: tuple[str, ...] = get_args(Resize)

PNG16 = ("high_byte", "full_range", "percentile")
BACKGROUNDS = ("keep", "white", "black")

MAX_BITS = 16
LOW_PERCENT, HIGH_PERCENT = 1, 99
"""Percentages of a 16-bit image's samples at or below the black and the white of "percentile"."""


@dataclass(frozen=True)
class Samples:
    """Conversion of samples to 8 bits of RGB.

    Attributes:
        png16: of a PNG of 16 bits whose sBIT chunk declares no fewer (else that is obeyed):
            "high_byte" takes that of each sample; "full_range" makes the darkest sample of an image
            0 and the brightest 255; "percentile" does so with the samples that 1 % and 99 % of them
            do not exceed.
        background: "keep" takes the colours as stored, whatever the alpha; "white" and "black" are
            laid behind them.
    """

    png16: str = PNG16[0]
    background: str = BACKGROUNDS[0]

    def __post_init__(self) -> None:
        arguments.choice("png16", self.png16, PNG16)
        arguments.choice("background", self.background, BACKGROUNDS)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Samples:
        """Returns those in the options of a manifest or another file; the usual ones by default."""
        return cls(**{field.name: options[field.name] for field in dataclasses.fields(cls) if field.name in options})

    def options(self) -> dict[str, str]:
        """Returns the unusual ones by name: files written before there was a choice have none."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value != getattr(USUAL, name)}


USUAL = Samples()

"""What the user says about a teacher."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TeacherOptions:
    """What the user says about a teacher. Every field is None, or its default, where they said nothing."""

    metres_per_unit: float | None = None
    """Scale of a file's numbers. The flag is written `0.001`, `80/65535`, `mm` ..."""
    depth_space: str | None = None
    """One of DEPTH_SPACES, for a teacher that does not say itself."""
    licence: str | None = None
    precision: str = "auto"
    """`auto`, `float32`, `bfloat16` or `float16`."""
    invalid: tuple[float, ...] = ()
    """Numbers that say in a file of predictions that there is no value, besides those of its description."""
    drop_nonpositive: bool = False
    """Whether depth of 0 or less is no value, rather than a fault, of a network."""
    trust_code: bool = False
    """Whether code that lies beside the weights may run."""
    revision: str | None = None
    input_size_px: tuple[int, int] | None = None
    """(height, width) that the network sees, in place of its own custom; or saw, of predictions."""
    normalise: str | None = None
    """How a file's network wants its pixels: `imagenet`, `half`, `unit`, `bytes` or `MEAN/STD`, each one or three."""
    channels: str | None = None
    """Order of a file's input channels: `rgb` or `bgr`."""
    output: str | None = None
    """Name of the output of a file that is depth, where it has several."""
    flip_average: bool = False
    """Whether the image and its mirrored self are both looked at; means something to every kind."""
    map_edges_m: tuple[float, ...] | None = None
    """Edges of the bins in which answers are mixed, of an ensemble and with `flip_average`, that share none already."""
    map_sigma_m: float | None = None
    """Width of the Gaussian that stands for an answer without a map, where answers are mixed."""

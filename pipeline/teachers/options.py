"""Options of a teacher."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TeacherOptions:
    """Options of a teacher. A field at its default is not specified."""

    metres_per_unit: float | None = None
    """Metres per unit of a file's numbers."""
    depth_space: str | None = None
    """One of DEPTH_SPACES, if the teacher's files do not specify it."""
    licence: str | None = None
    precision: str = "auto"
    """`auto`, `float32`, `bfloat16` or `float16`."""
    invalid: tuple[float, ...] = ()
    """Numbers that mean a missing value in files of predictions, in addition to those of predictions.json."""
    drop_nonpositive: bool = False
    """Treat a network's depth of 0 or less as missing; otherwise it is an error."""
    trust_code: bool = False
    """Allow code that comes with the weights to run."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    input_size_px: tuple[int, int] | None = None
    """(height, width) of the network's input; for predictions, of the input that they were made from."""
    normalise: str | None = None
    """Normalization of the input: `imagenet`, `half`, `unit`, `bytes` or `MEAN/STD`, one or three numbers each."""
    channels: str | None = None
    """Order of the input channels: `rgb` or `bgr`."""
    output: str | None = None
    """Name of the depth output of a file with several outputs, or `depth=NAME,confidence=NAME,sky=NAME`."""
    features: tuple[str, ...] = ()
    """Names of the layers whose features the teacher returns."""
    focal_px: float | None = None
    """Focal length of the original images in pixels, for a teacher that depends on it; None is the source's."""
    canonical_focal_px: float | None = None
    """Focal length of a network file's canonical camera: metres = output * focal length of the view / this."""
    flip_average: bool = False
    """Average the predictions for each image and its mirror image."""
    readout: str | None = None
    """How a checkpoint's depth is read from its map, one of `readout.READOUTS`; None is as it was trained."""
    map_edges_m: tuple[float, ...] | None = None
    """Bin edges of a mixture (`ensemble:`, `flip_average`) of teachers that share no bins."""
    map_sigma_m: float | None = None
    """Width of the Gaussian that a mixture uses for predictions without a map."""

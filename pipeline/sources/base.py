"""The interface of a data set: rows with an id, an image and optional ground truth, and default options.

Shape legend: H, W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .readers.images import read_image_with_sha256, turned_as

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


class Sample(NamedTuple):
    """One row of a split. Paths are text, because a split may have a million rows."""

    id: str
    """Names the image within its source, the same on every machine; the store is keyed by it."""
    image_path: str
    """Its file; where a file holds many images, that file, and the id tells which."""
    truth_path: str | None
    """None where the data set has no ground truth for this image."""
    focal_px: float | None


@dataclass(frozen=True)
class Defaults:
    """Options that papers on this data set use, applied unless the user sets them. None means no default."""

    view: str = "full"
    bins: str | None = None
    sigma_m: float | None = None
    protocol: str = "plain"
    crop_px: tuple[int, int] | None = None
    """(H, W) of the random crop in training."""
    rotate_deg: float = 0.0
    """Half of the range of random rotation in training."""
    skip_rows: int = 0
    """Top rows of a training crop that distillation losses leave out (sky, in KITTI's)."""


class Source(Protocol):
    """A data set on disk. Picklable, for a loader's workers: what holds an open file opens it again there."""

    name: str
    root: Path
    defaults: Defaults
    truth: str
    """Folder of the ground truth that is read, where a data set has several kinds of it."""

    def samples(self, split: str) -> Sequence[Sample]:
        """Rows of a named split or of a list file, in its order.

        Raises PipelineError for a missing or empty split, a malformed row, a duplicate id, a path that leaves
        the root. Image files are not opened here, so a missing one is reported when it is read.
        """
        ...

    def read_image(self, sample: Sample) -> tuple[NDArray[np.uint8], str]:
        """Image (H, W, 3) uint8 RGB, upright, and the sha256 of its file.

        Of its pixels, where a file holds many images, or its EXIF says that it is turned.

        Raises PipelineError for a file that is missing or does not decode.
        """
        ...

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Ground truth (H, W) float32 metres, NaN where there is no measurement; None if the row has none."""
        ...


class Declared:
    """What a source inherits whose truth is read from numbers of files.

    A source that honours `invalid` sets it to (); None refuses it.
    """

    invalid: tuple[float, ...] | None = None
    """The files' own numbers, before any scale, that say that there is no measurement, besides the usual ones."""


class ImageFiles(Declared):
    """What a source inherits whose images are PNG, JPEG or WebP, a file each."""

    def read_image(self, sample: Sample) -> tuple[NDArray[np.uint8], str]:
        """As `Source.read_image`."""
        return read_image_with_sha256(sample.image_path)

    def upright(self, sample: Sample, truth_m: NDArray[np.float32]) -> NDArray[np.float32]:
        """Ground truth (H, W) as the image lies that `read_image` gives. Raises PipelineError as `images.turned_as`."""
        return turned_as(sample.image_path, truth_m, sample.truth_path or f"ground truth of {sample.id}")


def truth_name(source: Source, asked: str | None = None) -> str:
    """Which ground truth a source reads, by the name that is asked for or its own, with what is declared invalid."""
    invalid = getattr(source, "invalid", None) or ()
    name = asked or source.truth
    return f"{name} without {', '.join(f'{number:g}' for number in invalid)}" if invalid else name


@dataclass(frozen=True)
class SourceKind:
    """What a source's module registers itself with, as its constant `SOURCE`.

    The module's own name is the source's, with `-` for `_`: `kitti_raw.py` is `--source kitti-raw:ROOT`. The texts make
    its row in docs/sources.md.
    """

    open: Callable[[Path, str | None], Source]
    """Of the root and the name of a ground truth, None for the usual one. Raises PipelineError for a wrong root."""
    data_set: str
    """Its name, and who made it."""
    layout: str
    """What has to lie below the root, as paths."""
    splits: str
    """What `--split` may be."""
    truth: str
    """Kind of ground truth, how it is stored, and its units; where there are several, the names for `--truth`."""
    licence: str
    """Of the data."""
    defaults: Defaults
    """Default options for the table in the documentation; a root may have others."""

"""The interface of a data set: rows with an id, an image and optional ground truth, and default options.

Shape legend: H, W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .intrinsics import Intrinsics, checked
from .readers.images import FIRST_QUARTER_TURN, orientation_of, read_image_with_sha256, turned_as

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


class Sample(NamedTuple):
    """One row of a split. Paths are text, because a split may have a million rows."""

    id: str
    """Identifies the image within its source on every machine; the key of its row in a store."""
    image_path: str
    """Image file; in a file of many images, the id selects one."""
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
    """A data set on disk. Picklable for loader workers, which reopen any open file.

    A source of stereo pairs also has `read_right` and `baseline_m`, see `stereo.StereoSource`.

    A source that knows its cameras also has `read_intrinsics(sample, image_px) -> Intrinsics | None`: those of the
    upright image of `image_px` (height, width). Call it with `intrinsics_of`.
    """

    name: str
    root: Path
    defaults: Defaults
    truth: str
    """Name of the ground truth that is read."""

    def samples(self, split: str) -> Sequence[Sample]:
        """Return the rows of a named split or of a list file, in its order.

        Raises PipelineError for a missing or empty split, a malformed row, a duplicate id, or a path outside
        the root. Image files are not opened, so a missing one is reported when it is read.
        """
        ...

    def read_image(self, sample: Sample) -> tuple[NDArray[np.uint8], str]:
        """Return the upright image (H, W, 3) uint8 RGB and the sha256 of its file.

        The sha256 is that of the pixels if the file holds many images or EXIF rotates the image.

        Raises PipelineError for a missing or damaged file.
        """
        ...

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Return ground truth (H, W) float32 metres, NaN without a measurement; None if the row has none."""
        ...


class FileCamera(NamedTuple):
    """Intrinsics of image files as the cameras wrote them, before EXIF rotates them."""

    intrinsics: Intrinsics
    size_px: tuple[int, int] | None = None
    """(height, width) of the images that they are for; None for the image's own pixels, whatever its size."""
    where: str = ""
    """File and line that they were read from, for errors."""

    def of_file(self, file_px: tuple[int, int]) -> Intrinsics | None:
        """Return the intrinsics of an image file of another size; None if its aspect ratio differs.

        Raises PipelineError as `intrinsics.checked`.
        """
        if self.size_px in {None, file_px}:
            return checked(self.intrinsics, file_px, self.where or "intrinsics")
        return self.intrinsics.of_copy(self.size_px, file_px)


class Declared:
    """Base of sources whose users can declare stored values as invalid.

    A source that supports `invalid` sets it to (); None refuses it.
    """

    invalid: tuple[float, ...] | None = None
    """Stored values, before scaling, that also mean no measurement."""


class ImageFiles(Declared):
    """Base of sources with one PNG, JPEG or WebP file per image."""

    def read_image(self, sample: Sample) -> tuple[NDArray[np.uint8], str]:
        """See `Source.read_image`."""
        return read_image_with_sha256(sample.image_path)

    def upright(self, sample: Sample, truth_m: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rotate ground truth (H, W) as `read_image` rotates the image. Raises PipelineError as `images.turned_as`."""
        return turned_as(sample.image_path, truth_m, sample.truth_path or f"ground truth of {sample.id}")

    def read_intrinsics(self, sample: Sample, image_px: tuple[int, int]) -> Intrinsics | None:
        """Return the intrinsics of an upright image (height, width), rotated as `read_image` rotates it.

        Raises PipelineError as `camera`.
        """
        camera = self.camera(sample)
        if camera is None:
            return None
        orientation = orientation_of(sample.image_path)
        file_px = image_px[::-1] if orientation >= FIRST_QUARTER_TURN else image_px
        of_file = camera.of_file(file_px)
        return None if of_file is None else of_file.turned(orientation, file_px)

    def camera(self, sample: Sample) -> FileCamera | None:
        """Return the camera of an image file; None if it is unknown. By default from the row's focal length.

        Raises PipelineError, naming the file and line, for damaged intrinsics.
        """
        return None if sample.focal_px is None else FileCamera(Intrinsics.of_focal(sample.focal_px))


def truth_name(source: Source, name: str | None = None) -> str:
    """Return the name of the ground truth, by default the source's own, with its declared invalid values."""
    invalid = getattr(source, "invalid", None) or ()
    name = name or source.truth
    return f"{name} without {', '.join(f'{number:g}' for number in invalid)}" if invalid else name


@dataclass(frozen=True)
class SourceKind:
    """Description of a source, the constant `SOURCE` of its module.

    The module name with `-` for `_` is the kind: `kitti_raw.py` is `kitti-raw:ROOT`. The texts form its row in
    docs/sources.md.
    """

    open: Callable[[Path, str | None], Source]
    """Open a root with the named ground truth, None for the default. Raises PipelineError for a wrong root."""
    data_set: str
    """Name and authors."""
    layout: str
    """Expected paths below the root."""
    splits: str
    """Accepted values of `--split`."""
    truth: str
    """Kind, storage and units of the ground truth; its names for `--truth` if there are several."""
    licence: str
    """Licence of the data."""
    defaults: Defaults
    """Default options for the table in the documentation; a root may have others."""
    intrinsics: str = "none"
    """Where the camera's intrinsics come from."""
    takes_files: bool = False
    """Whether a root may also name files in a folder: a path or a pattern, which `open` checks."""

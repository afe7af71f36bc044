"""Read the images of a store's samples and prepare them as batches, ahead of the teacher.

Shape legend: B batch, H W pixels of the view.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..common.parallel import in_order
from ..errors import PipelineError
from ..sources.intrinsics import intrinsics_of_view
from ..sources.stereo import baseline_of, read_right
from ..teachers.base import PreparingTeacher, StagingTeacher, device_of, images_of_views
from ..teachers.camera import wants_baseline, wants_intrinsics, wants_right

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from ..common.profile import Profile
    from ..sources.base import Sample, Source
    from ..sources.intrinsics import Intrinsics
    from ..sources.view import View
    from ..store.format.spec import StoreSpec
    from ..teachers.base import Teacher

PREPARED = 2
"""Batches prepared ahead; as many again are being read, and as many are with the teacher."""


class Frame(NamedTuple):
    """One image, read and prepared."""

    sample: Sample
    input: NDArray[Any] | None
    """The view (H, W, 3) uint8, or what the teacher's `prepare` made of it; None for a folder of predictions."""
    sha256: str
    image_size_px: tuple[int, int]
    intrinsics: Intrinsics | None = None
    """Of the view; None where the source has none."""
    right: NDArray[np.uint8] | None = None
    """View (H, W, 3) of the right image, for a teacher that wants it."""
    baseline_m: float | None = None
    """Of a stereo pair; None where the source has none."""


class Batch(NamedTuple):
    """Frames of one call of the teacher."""

    frames: list[Frame]
    inputs: torch.Tensor | None
    """(B, ...) stacked inputs of the frames, in pinned memory for a GPU; images (B, 3, H, W) float32 in 0..1 for a
    teacher on the CPU without `prepare`; None for a folder of predictions."""
    right: torch.Tensor | None = None
    """(B, 3, H, W) float32 in 0..1, for a teacher that wants right images."""


class BatchReader:
    """Reads, prepares and stacks the images of a source's samples for a teacher, in threads of its own.

    Images for a folder of predictions are read for their hash alone. `threads` is the number of threads that read.
    """

    def __init__(
        self,
        spec: StoreSpec,
        source: Source,
        samples: Sequence[Sample],
        view: View,
        profile: Profile,
        *,
        batch_size: int,
        teacher: Teacher,
        threads: int,
    ) -> None:
        self._spec, self._source, self._samples, self._view = spec, source, samples, view
        self._profile, self._batch_size = profile, batch_size
        self._needs_images = teacher.needs_images
        self._prepare_view = teacher.prepare if isinstance(teacher, PreparingTeacher) else None
        self._pinned = device_of(teacher).type == "cuda"
        self._converts = self._prepare_view is None and device_of(teacher).type == "cpu"
        self._stage = teacher.stage if self._converts and isinstance(teacher, StagingTeacher) else None
        self._wants_intrinsics = wants_intrinsics(teacher) or spec.extras.intrinsics == "source"
        self._wants_right, self._wants_baseline = wants_right(teacher), wants_baseline(teacher)
        self._ahead = PREPARED * batch_size + threads
        self._readers = ThreadPoolExecutor(threads, "read")
        self._preparer = ThreadPoolExecutor(1, "prepare")

    def close(self) -> None:
        """Drop what is not read yet."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._preparer.shutdown(wait=False, cancel_futures=True)

    def batches(self, shards: Sequence[int]) -> Iterator[Future[Batch]]:
        """Yield the batches of these shards in order; prepares ahead after the first `next`.

        Batches never cross a shard. Their futures raise PipelineError for an image that cannot be read, or whose view
        has another size than the store.
        """
        sizes = [len(self._spec.shard_samples(shard)) for shard in shards]
        wanted = (self._samples[number] for shard in shards for number in self._spec.shard_samples(shard))
        frames = in_order(self._readers, self.read, wanted, self._ahead)
        grouped = (
            list(islice(frames, min(self._batch_size, size - start)))
            for size in sizes
            for start in range(0, size, self._batch_size)
        )
        return in_order(self._preparer, self._prepare, grouped, PREPARED)

    def _prepare(self, frames: Sequence[Future[Frame]]) -> Batch:
        return self.stack([future.result() for future in frames])

    def stack(self, frames: list[Frame]) -> Batch:
        """Stack frames into a batch."""
        arrays = [frame.input for frame in frames if frame.input is not None]
        if not arrays:
            return Batch(frames, None)
        with self._profile.span("stack"):
            shape = (len(arrays), *arrays[0].shape)
            dtype = torch.from_numpy(arrays[0]).dtype
            inputs = torch.empty(shape, dtype=dtype, pin_memory=self._pinned)
            np.stack(arrays, out=inputs.numpy())
            if self._converts:
                inputs = images_of_views(inputs)
            if self._stage is not None:
                inputs = self._stage(inputs)
            rights = [frame.right for frame in frames if frame.right is not None]
            right = images_of_views(torch.from_numpy(np.stack(rights))) if rights else None
        return Batch([frame._replace(input=None, right=None) for frame in frames], inputs, right)

    def read(self, sample: Sample) -> Frame:
        """Read one image. Raises PipelineError as `batches`."""
        with self._profile.span("read"):
            image, sha256 = self._source.read_image(sample)
            image_px = image.shape[0], image.shape[1]
            try:
                view = self._view.of_image(image)
            except ValueError as error:
                raise PipelineError(f"{sample.image_path}: {error}") from error
        if view.shape[:2] != self._spec.view_size_px:
            expected = "x".join(map(str, self._spec.view_size_px))
            raise PipelineError(
                f"{sample.image_path}: its view {self._view} is {view.shape[0]}x{view.shape[1]} px, that of the first "
                f"image {expected}, and a store has one size: choose `view=kb`, center:HxW or full,resize:HxW"
            )
        prepared: NDArray[Any] | None = view
        if not self._needs_images:
            prepared = None
        elif self._prepare_view is not None:
            with self._profile.span("prepare"):
                prepared = self._prepare_view(view).numpy()
        intrinsics = None
        if self._wants_intrinsics:
            intrinsics = intrinsics_of_view(self._source, sample, self._view, image_px)
        right = self._view.of_image(read_right(self._source, sample, image_px)) if self._wants_right else None
        baseline_m = baseline_of(self._source, sample) if self._wants_baseline else None
        return Frame(sample, prepared, sha256, image_px, intrinsics, right, baseline_m)

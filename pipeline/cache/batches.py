"""Read the images of a store's samples and prepare them as batches, ahead of the teacher.

Shape legend: B batch, H W pixels of the view.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ..common.parallel import in_order
from ..errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from ..common.profile import Profile
    from ..sources.base import Sample, Source
    from ..sources.view import View
    from ..store.format.spec import StoreSpec

PREPARED = 2
"""Batches prepared ahead; as many again are being read, and as many are with the teacher."""


class Frame(NamedTuple):
    """The view of one image."""

    sample: Sample
    view: NDArray[np.uint8]
    sha256: str
    image_size_px: tuple[int, int]


class Batch(NamedTuple):
    """Frames of one call of the teacher."""

    frames: list[Frame]
    images: torch.Tensor | None
    """(B, 3, H, W) float32 in 0..1; None for a folder of predictions."""


class BatchReader:
    """Reads and stacks the views of a source's samples, in threads of its own.

    Args:
        needs_images: whether batches have `images`; without, images are read for their hash alone.
        threads: number of threads that read.
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
        needs_images: bool,
        threads: int,
    ) -> None:
        self._spec, self._source, self._samples, self._view = spec, source, samples, view
        self._profile, self._batch_size, self._needs_images = profile, batch_size, needs_images
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
        images = None
        if self._needs_images:
            with self._profile.span("prepare"):
                # Channels stay last in memory: the last bits of a network's output depend on the layout
                pixels = torch.from_numpy(np.stack([frame.view for frame in frames]))
                images = pixels.float().div_(255).permute(0, 3, 1, 2)
        return Batch(frames, images)

    def read(self, sample: Sample) -> Frame:
        """Read one image. Raises PipelineError as `batches`."""
        with self._profile.span("read"):
            image, sha256 = self._source.read_image(sample)
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
        return Frame(sample, view, sha256, (image.shape[0], image.shape[1]))

"""Reads the frames of a split in batches: the view of each image and its ground truth.

Shape legend: B batch, H, W pixels of the view.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ..common.parallel import in_order, worker_threads
from .truth import read_truth_of_view_m

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from .base import Sample, Source
    from .view import View


class Frame(NamedTuple):
    """The view of one image and of its ground truth."""

    sample: Sample
    image: NDArray[np.uint8]
    """(H, W, 3)"""
    image_sha256: str
    truth_m: NDArray[np.float32] | None
    """(H, W) metres, NaN without a measurement; None if the image has no ground truth."""


def read_frame(source: Source, sample: Sample, view: View) -> Frame:
    """Read an image and its ground truth. Raises PipelineError naming the faulty file."""
    image, sha256 = source.read_image(sample)
    truth_m = read_truth_of_view_m(source, sample, view, (image.shape[0], image.shape[1]))
    return Frame(sample, view.of_image(image), sha256, truth_m)


def frames_in_batches(source: Source, samples: Sequence[Sample], view: View, batch_size: int) -> Iterator[list[Frame]]:
    """Yield batches of frames in order, prefetched by threads; a batch ends early before an image of another size."""
    with ThreadPoolExecutor(worker_threads(), "read") as pool:
        futures = in_order(pool, lambda sample: read_frame(source, sample, view), samples, 2 * batch_size)
        batch: list[Frame] = []
        for future in futures:
            frame = future.result()
            if batch and (len(batch) == batch_size or frame.image.shape != batch[0].image.shape):
                yield batch
                batch = []
            batch.append(frame)
        if batch:
            yield batch


def images_of(frames: Sequence[Frame], device: torch.device) -> Tensor:
    """Return the images (B, 3, H, W) float32 in 0..1 on the device."""
    stacked = torch.from_numpy(np.stack([frame.image for frame in frames]))
    return stacked.to(device).permute(0, 3, 1, 2).float() / 255

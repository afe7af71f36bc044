"""Whether an exported file gives what PyTorch gives: on real images where there are some, and at odd sizes.

Shape legend: B batch, K bins, H W pixels of the view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..common.progress import Silent
from ..depth.dpm import entropy_nats, interval_m
from ..depth.metrics import PROTOCOLS
from ..errors import PipelineError
from ..networks.predict import predict_depth_m, predict_map
from ..sources.frames import read_frame
from ..sources.readers.images import read_rgb
from ..sources.splits import evenly
from .onnx_model import OF_MAP, as_input

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ..common.progress import Progress
    from ..depth.metrics import Protocol
    from ..networks.saved_run import LoadedRun
    from ..sources.base import Source
    from ..sources.view import View
    from .onnx_model import OnnxStudent

INTERVAL_MASS = 0.9
ODD_SIZES_PX = ((65, 97), (96, 70), (128, 161))
"""Beside the real images: traps for shapes that an exporter took for constants."""
SYNTHETIC_PX = (128, 416)
SYNTHETIC_IMAGES = 4
LOOSE_SHARE = 0.001
"""Of the pixels of an output of the map, which may differ more: a quantile jumps where the map is all but flat."""


class ProbeImage(NamedTuple):
    """An image as the view shows it."""

    name: str
    image: NDArray[np.uint8]
    """(H, W, 3)"""
    truth_m: NDArray[np.float32] | None = None
    """(H, W) metres, NaN where there is none."""


@dataclass(frozen=True)
class ProbeImages:
    """Images that a file is tried on, and where they come from, in words."""

    images: list[ProbeImage]
    origin: str
    real: bool
    protocol: Protocol = PROTOCOLS["plain"]
    """How their truth is measured against; without a flip average, for a device takes one look."""


def images_of_source(source: Source, split: str, view: View, count: int, skip: Sequence[str] = ()) -> ProbeImages:
    """`count` images of a split, spread evenly, with their truth; those in `skip` only where there is no other."""
    samples = source.samples(split)
    left = [sample for sample in samples if sample.id not in set(skip)]
    frames = [read_frame(source, sample, view) for sample in evenly(left or samples, count)]
    found = [ProbeImage(frame.sample.id, frame.image, frame.truth_m) for frame in frames]
    protocol = replace(PROTOCOLS[source.customs.protocol], flip_average=False)
    return ProbeImages(found, f"{len(found)} images of {source.name}, split {split}", real=True, protocol=protocol)


def images_of_files(paths: Sequence[Path], view: View, count: int) -> ProbeImages:
    """`count` of the image files, spread evenly."""
    picked = [paths[number * len(paths) // count] for number in range(count)] if count < len(paths) else paths
    found = [ProbeImage(str(path), view.of_image(read_rgb(str(path)))) for path in picked]
    return ProbeImages(found, f"{len(found)} image files", real=True)


def synthetic_images(size_px: tuple[int, int] | None) -> ProbeImages:
    """Smooth seeded images, for want of real ones."""
    size_px = size_px or SYNTHETIC_PX
    found = [ProbeImage(f"synthetic {seed}", smooth(size_px, 1, seed)[0]) for seed in range(SYNTHETIC_IMAGES)]
    return ProbeImages(found, f"{len(found)} synthetic images of {size_px[0]}x{size_px[1]} px, no real one", real=False)


def smooth(size_px: tuple[int, int], count: int, seed: int) -> NDArray[np.uint8]:
    """Images (count, H, W, 3) uint8 of soft blobs, the same for the same seed."""
    coarse = torch.rand(count, 3, 5, 8, generator=torch.Generator().manual_seed(seed))
    image = F.interpolate(coarse, size_px, mode="bicubic").clamp(0, 1)
    found: NDArray[np.uint8] = (image * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return found


@torch.inference_mode()
def reference(run: LoadedRun, images: NDArray[np.float32], outputs: Sequence[str]) -> list[NDArray[np.float32]]:
    """What PyTorch gives (B, H, W) for images (B, 3, H, W) in 0..1, depth first, by the code that measures students."""
    given = torch.from_numpy(images)
    edges_m = torch.from_numpy(run.bin_edges_m)
    found = {outputs[0]: predict_depth_m(run.network, given, edges_m, flip_average=False)}
    if len(outputs) > 1:
        maps = predict_map(run.network, given)
        of_map = (entropy_nats(maps), *interval_m(maps, edges_m, INTERVAL_MASS))
        for name, one in zip(OF_MAP, of_map, strict=True):
            found[name] = F.interpolate(one, given.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return [found[name].numpy() for name in outputs]


@dataclass(frozen=True)
class Gap:
    """The largest relative difference of depth, and where it is."""

    error: float
    image: str
    row: int
    column: int
    pytorch_m: float
    onnx_m: float

    def __str__(self) -> str:
        return (
            f"{self.error:.2e} at row {self.row}, column {self.column} of {self.image}: "
            f"PyTorch {self.pytorch_m:.6g} m, ONNX {self.onnx_m:.6g} m"
        )


def gap(name: str, expected_m: NDArray[np.float32], found_m: NDArray[np.float32]) -> Gap:
    """The worst pixel of one image (H, W). What is not finite in either differs without bound."""
    error = np.abs(found_m.astype(np.float64) - expected_m) / np.maximum(np.abs(expected_m), 1e-9)
    error[~np.isfinite(error)] = math.inf
    row, column = (int(place) for place in np.unravel_index(np.argmax(error), error.shape))
    return Gap(
        float(error[row, column]), name, row, column, float(expected_m[row, column]), float(found_m[row, column])
    )


def check_parity(
    run: LoadedRun, student: OnnxStudent, given: ProbeImages, limit: float, progress: Progress | None = None
) -> dict[str, Any]:
    """Compare a file with PyTorch, image by image, then in batches at other sizes.

    Returns a JSON value: `images` and `of`, `limit`, `max_rel_error` of depth and `worst`, where it is; `sizes`, those
    of the batches; and `of_map`, the share of pixels of the other outputs beyond the limit. Raises PipelineError with
    the figure, the image and the pixel where depth differs by more than `limit`, or another output nearly everywhere.
    """
    worst: Gap | None = None
    beyond = dict.fromkeys(student.outputs[1:], 0)
    pixels = 0
    batches = [([one.name], one.image[None]) for one in given.images]
    sizes = ODD_SIZES_PX if student.size_px is None else (student.size_px,)
    for seed, size_px in enumerate(sizes):
        names = [f"synthetic {size_px[0]}x{size_px[1]} ({number})" for number in range(2 + seed)]
        batches.append((names, smooth(size_px, len(names), 100 + seed)))
    with (progress or Silent()).task("compare", len(batches), "batch") as task:
        for names, images in batches:
            tensors = as_input(images)
            expected = reference(run, tensors, student.outputs)
            found = student.run(tensors, student.outputs)
            for name, expected_m, found_m in zip(names, expected[0], found[0], strict=True):
                here = gap(name, expected_m, found_m)
                worst = here if worst is None or here.error > worst.error else worst
            pixels += found[0].size
            for output, one, other in zip(student.outputs[1:], expected[1:], found[1:], strict=True):
                close = np.abs(one - other) <= limit * np.maximum(np.abs(one), 1)
                beyond[output] += int((~close).sum())
            task.update()
    assert worst is not None, "there is always a synthetic batch"
    if not worst.error <= limit:
        raise PipelineError(
            f"the exported file is not the network: relative depth error {worst}; at most {limit:g} is allowed. "
            "Nothing was written; try another `opset`, or allow more with `max_rel_error`"
        )
    shares = {output: count / pixels for output, count in beyond.items()}
    for output, share in shares.items():
        if share > LOOSE_SHARE:
            raise PipelineError(
                f"the exported file is not the network: {output} is off by more than {limit:g} at {share:.2%} of the "
                f"pixels, at most {LOOSE_SHARE:.1%} is allowed. Nothing was written; try another `opset`"
            )
    return {
        "images": len(given.images),
        "of": given.origin,
        "real_images": given.real,
        "batches": [f"{2 + seed}x{size[0]}x{size[1]}" for seed, size in enumerate(sizes)],
        "limit": limit,
        "max_rel_error": worst.error,
        "worst": {
            "image": worst.image,
            "row": worst.row,
            "column": worst.column,
            "pytorch_m": worst.pytorch_m,
            "onnx_m": worst.onnx_m,
        },
        "of_map": shares,
    }

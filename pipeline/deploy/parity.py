"""Compare an exported file with PyTorch, on real images if given, and at odd sizes.

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
from ..depth.readout import TRAINABLE
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
"""Sizes of synthetic batches, to detect shapes that the exporter made constant."""
SYNTHETIC_PX = (128, 416)
SYNTHETIC_IMAGES = 4
MAX_FRACTION_BEYOND = 0.001
"""Fraction of pixels of a quantile that may exceed the limit: it jumps where the map is nearly flat."""


class ProbeImage(NamedTuple):
    """An image in the view of the network."""

    name: str
    image: NDArray[np.uint8]
    """(H, W, 3)"""
    truth_m: NDArray[np.float32] | None = None
    """(H, W) metres, NaN where there is none."""


@dataclass(frozen=True)
class ProbeImages:
    """Images for a comparison, and a text that says where they come from."""

    images: list[ProbeImage]
    origin: str
    real: bool
    protocol: Protocol = PROTOCOLS["plain"]
    """Protocol of their metrics, without a flip average: a device runs the network once."""


def images_of_source(source: Source, split: str, view: View, count: int, skip: Sequence[str] = ()) -> ProbeImages:
    """Sample `count` images of a split evenly, with truth; use those in `skip` only if there are no others."""
    samples = source.samples(split)
    left = [sample for sample in samples if sample.id not in set(skip)]
    frames = [read_frame(source, sample, view) for sample in evenly(left or samples, count)]
    images = [ProbeImage(frame.sample.id, frame.image, frame.truth_m) for frame in frames]
    protocol = replace(PROTOCOLS[source.defaults.protocol], flip_average=False)
    return ProbeImages(images, f"{len(images)} images of {source.name}, split {split}", real=True, protocol=protocol)


def images_of_files(paths: Sequence[Path], view: View, count: int) -> ProbeImages:
    """Sample `count` of the image files evenly."""
    picked = [paths[number * len(paths) // count] for number in range(count)] if count < len(paths) else paths
    images = [ProbeImage(str(path), view.of_image(read_rgb(str(path)))) for path in picked]
    return ProbeImages(images, f"{len(images)} image files", real=True)


def synthetic_images(size_px: tuple[int, int] | None) -> ProbeImages:
    """Smooth seeded images, used if no real ones are given."""
    size_px = size_px or SYNTHETIC_PX
    images = [ProbeImage(f"synthetic {seed}", smooth(size_px, 1, seed)[0]) for seed in range(SYNTHETIC_IMAGES)]
    return ProbeImages(
        images, f"{len(images)} synthetic images of {size_px[0]}x{size_px[1]} px, no real one", real=False
    )


def smooth(size_px: tuple[int, int], count: int, seed: int) -> NDArray[np.uint8]:
    """Images (count, H, W, 3) uint8 of soft blobs, determined by the seed."""
    coarse = torch.rand(count, 3, 5, 8, generator=torch.Generator().manual_seed(seed))
    image = F.interpolate(coarse, size_px, mode="bicubic").clamp(0, 1)
    images: NDArray[np.uint8] = (image * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return images


@torch.inference_mode()
def reference(
    run: LoadedRun, images: NDArray[np.float32], outputs: Sequence[str], readout: str | None = None
) -> list[NDArray[np.float32]]:
    """PyTorch outputs (B, H, W) for images (B, 3, H, W) in 0..1, depth first, by the code of evaluation."""
    tensor = torch.from_numpy(images)
    reader = run.reader(readout=readout)
    values = {outputs[0]: predict_depth_m(run.network, tensor, reader, flip_average=False)}
    if len(outputs) > 1:
        maps = predict_map(run.network, tensor, reader)
        of_map = (entropy_nats(maps), *interval_m(maps, reader.bin_edges_m, INTERVAL_MASS))
        for name, value in zip(OF_MAP, of_map, strict=True):
            values[name] = F.interpolate(value, tensor.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return [values[name].numpy() for name in outputs]


@dataclass(frozen=True)
class Gap:
    """The largest relative difference of depth, and its pixel."""

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


def gap(name: str, expected_m: NDArray[np.float32], actual_m: NDArray[np.float32]) -> Gap:
    """The worst pixel of one image (H, W). A pixel that is not finite has infinite error."""
    error = np.abs(actual_m.astype(np.float64) - expected_m) / np.maximum(np.abs(expected_m), 1e-9)
    error[~np.isfinite(error)] = math.inf
    row, column = (int(index) for index in np.unravel_index(np.argmax(error), error.shape))
    return Gap(
        float(error[row, column]), name, row, column, float(expected_m[row, column]), float(actual_m[row, column])
    )


def check_parity(
    run: LoadedRun,
    student: OnnxStudent,
    given: ProbeImages,
    limit: float,
    progress: Progress | None = None,
    readout: str | None = None,
) -> dict[str, Any]:
    """Compare a file with PyTorch, image by image, then in batches at other sizes.

    Returns a JSON value: `images` and `of`, `limit`, `max_rel_error` of depth and its `worst` pixel; `batches`, their
    sizes; and `of_map`, the fraction of pixels of the other outputs beyond the limit. Raises PipelineError with the
    error, image and pixel if depth differs by more than `limit`, or if more than 0.1 % of another output do. Depth that
    is read as a quantile (`median`, `absrel`) may differ by more at 0.1 % of the pixels.
    """
    worst: Gap | None = None
    quantile = run.reader(readout=readout).readout not in TRAINABLE
    beyond = dict.fromkeys(student.outputs[0 if quantile else 1 :], 0)
    pixels = 0
    batches = [([image.name], image.image[None]) for image in given.images]
    sizes = ODD_SIZES_PX if student.size_px is None else (student.size_px,)
    for seed, size_px in enumerate(sizes):
        names = [f"synthetic {size_px[0]}x{size_px[1]} ({number})" for number in range(2 + seed)]
        batches.append((names, smooth(size_px, len(names), 100 + seed)))
    with (progress or Silent()).task("compare", len(batches), "batch") as task:
        for names, images in batches:
            tensors = as_input(images)
            expected = reference(run, tensors, student.outputs, readout)
            actual = student.run(tensors, student.outputs)
            for name, expected_m, actual_m in zip(names, expected[0], actual[0], strict=True):
                current = gap(name, expected_m, actual_m)
                worst = current if worst is None or current.error > worst.error else worst
            pixels += actual[0].size
            for output, reference_map, actual_map in zip(student.outputs, expected, actual, strict=True):
                if output not in beyond:
                    continue
                close = np.abs(reference_map - actual_map) <= limit * np.maximum(np.abs(reference_map), 1)
                beyond[output] += int((~close).sum())
            task.update()
    assert worst is not None, "there is always a synthetic batch"
    if not worst.error <= limit and not (quantile and math.isfinite(worst.error)):
        raise PipelineError(
            f"the exported file differs from PyTorch: relative depth error {worst}; at most {limit:g} is allowed. "
            "Nothing was written; try another `opset`, or a larger `max_rel_error`"
        )
    fractions = {output: count / pixels for output, count in beyond.items()}
    for output, fraction in fractions.items():
        if fraction > MAX_FRACTION_BEYOND:
            raise PipelineError(
                f"the exported file differs from PyTorch: {output} is off by more than {limit:g} at {fraction:.2%} of "
                f"the pixels, at most {MAX_FRACTION_BEYOND:.1%} is allowed. Nothing was written; try another `opset`"
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
        "of_map": fractions,
    }

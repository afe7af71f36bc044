"""Small data sets of each layout, and teachers that compute depth from brightness.

Shape legend: B batch, K bins, H W pixels of the view, h w pixels of the teacher's output.
"""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from pipeline.teachers.base import TeacherCard, TeacherOutput

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

BLACK_M = 12.0
"""Depth of a black pixel; white is at 0 m."""
DRIVE = "2011_09_26/2011_09_26_drive_0001_sync/image_02/data"
TRUTH = "2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02"


def smooth_depth_m(size_px: tuple[int, int], seed: int = 0) -> NDArray[np.float32]:
    """Depth (H, W) from 2 to 10 m: far at the top, near at the bottom, a bump that moves with `seed`."""
    rows, columns = np.mgrid[0.0 : 1.0 : size_px[0] * 1j, 0.0 : 1.0 : size_px[1] * 1j]
    bump = np.exp(-(((rows - 0.5) / 0.3) ** 2) - ((columns - (0.2 + 0.17 * seed) % 1) / 0.2) ** 2)
    return (9.5 - 5.5 * rows - 2.0 * bump).astype(np.float32)


def image_of(depth_m: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the image (H, W, 3) uint8 from which FakeTeacher predicts `depth_m`; the channels differ slightly."""
    gray = 255 * (1 - depth_m / BLACK_M)
    return np.stack([gray + 6, gray, gray - 6], axis=-1).round().clip(0, 255).astype(np.uint8)


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image in the format of its suffix, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)


def write_depth(path: Path, depth_m: NDArray[np.float32], metres_per_unit: float) -> None:
    """Write a 16-bit PNG, 0 where `depth_m` is NaN, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.nan_to_num(depth_m / metres_per_unit).round().astype(np.uint16)).save(path)


def sparse(depth_m: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return every fourth pixel of a depth map, and NaN elsewhere."""
    sampled = np.full_like(depth_m, np.nan)
    sampled[1::2, ::2] = depth_m[1::2, ::2]
    return sampled


def make_kitti(root: Path, frames: int = 6, size_px: tuple[int, int] = (40, 120)) -> Path:
    """Write a KITTI root with splits `train` (all but two frames) and `test` (the last two, the last without truth).

    Odd frames are JPEG files although the lists say `.png`. The kb view needs at least (352, 1216).
    """
    rows = []
    for frame in range(frames):
        depth_m, name = smooth_depth_m(size_px, frame), f"{frame:010d}"
        write_image(root / "input" / DRIVE / (name + (".jpg" if frame % 2 else ".png")), image_of(depth_m))
        truth = "None"
        if frame < frames - 1:
            truth = f"{TRUTH}/{name}.png"
            write_depth(root / "gt_depth" / truth, sparse(depth_m), 1 / 256)
        rows.append(f"{DRIVE}/{name}.png {truth} 721.5377")
    (root / "splits").mkdir()
    (root / "splits" / "train.txt").write_text("\n".join(rows[:-2]) + "\n")
    (root / "splits" / "test.txt").write_text("\n".join(rows[-2:]))
    return root


def make_folder(
    root: Path, ids: Sequence[str] = ("a/0001", "a/0002", "b/0001"), size_px: tuple[int, int] = (24, 32)
) -> Path:
    """Write a `folder` data set in millimetres; `test.txt` has the last id, `train.txt` the others."""
    for seed, sample_id in enumerate(ids):
        depth_m = smooth_depth_m(size_px, seed)
        write_image(root / "rgb" / f"{sample_id}.png", image_of(depth_m))
        write_depth(root / "depth" / f"{sample_id}.png", depth_m, 0.001)
    (root / "train.txt").write_text("".join(f"{sample_id}\n" for sample_id in ids[:-1]))
    (root / "test.txt").write_text(f"{ids[-1]}\n")
    return root


def make_scenes_folder(root: Path, count: int = 6, size_px: tuple[int, int] = (24, 64)) -> Path:
    """Write a `scenes` data set with dense and sparse depth; the last quarter of the frames is `test`."""
    ids = [f"{number:06d}" for number in range(count)]
    for seed, sample_id in enumerate(ids):
        depth_m = smooth_depth_m(size_px, seed)
        write_image(root / "rgb" / f"{sample_id}.png", image_of(depth_m))
        write_depth(root / "depth" / f"{sample_id}.png", depth_m, 1 / 256)
        write_depth(root / "depth_sparse" / f"{sample_id}.png", sparse(depth_m), 1 / 256)
    tests = max(1, count // 4)
    for name, listed in {"train": ids[:-tests], "test": ids[-tests:], "all": ids}.items():
        (root / f"{name}.txt").write_text("".join(f"{sample_id}\n" for sample_id in listed))
    (root / "dataset.json").write_text(json.dumps({"metres_per_unit": 1 / 256}))
    return root


class FakeTeacher:
    """A teacher without weights: depth is 12 m times darkness, at 1/`scale` of the view; maps if `with_dpm`.

    It implements the Teacher protocol, and is also the callable for `python:fakes:factory`.
    """

    needs_images = True

    def __init__(self, *, scale: int = 1, with_dpm: bool = False, name: str = "fake") -> None:
        self.card = TeacherCard(kind="python", name=name, depth_space="metric_m", weights_sha256="0" * 64)
        self.bin_edges_m = np.linspace(0, BLACK_M, 17) if with_dpm else None
        self._scale = scale

    def __call__(self, images):
        """Images (B, 3, H, W) -> depth (B, h, w), or a tuple of that and maps (B, K, h, w)."""
        depth_m = BLACK_M * (1 - F.avg_pool2d(images.mean(dim=1, keepdim=True), self._scale)).clamp(max=0.999)
        if self.bin_edges_m is None:
            return depth_m[:, 0]
        edges = torch.from_numpy(self.bin_edges_m).to(depth_m)
        centers = ((edges[1:] + edges[:-1]) / 2).view(1, -1, 1, 1)
        return depth_m[:, 0], torch.softmax(-((centers - depth_m) ** 2), dim=1)

    def predict(self, images, ids):
        """Implement the Teacher protocol."""
        assert len(images) == len(ids)
        output = self(images)
        return TeacherOutput(*output) if isinstance(output, tuple) else TeacherOutput(output)


PROBED = 2
"""Calls of a teacher before a run: with one image, and with a batch."""


class FailingTeacher(FakeTeacher):
    """Raises after some batches; predicts maps."""

    def __init__(self, batches: int, error: BaseException | type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__(scale=2, with_dpm=True, name="fake-dpm")
        self.left, self.error = PROBED + batches, error

    def predict(self, images: torch.Tensor | None, ids: Sequence[str]) -> TeacherOutput:
        """Predict, or raise."""
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().predict(images, ids)


class RelativeTeacher(FakeTeacher):
    """A relative FakeTeacher: each image has another scale and shift, as `depth_space` allows.

    With `lopsided`, the prediction for a mirrored image differs from the mirrored prediction, as with real networks.
    """

    def __init__(self, depth_space: str = "affine_disparity", *, lopsided: bool = False) -> None:
        super().__init__(name=f"fake-{depth_space}")
        self.card = replace(self.card, depth_space=depth_space)
        self.lopsided = lopsided

    def __call__(self, images):
        """Images (B, 3, H, W) -> values (B, H, W) in the depth space."""
        depth_m = super().__call__(images)
        if self.lopsided:
            depth_m = depth_m * torch.linspace(1.0, 1.5, depth_m.shape[-1])
        if self.card.depth_space == "metric_m":
            return depth_m
        brightness = images.mean(dim=(1, 2, 3))[:, None, None]
        scale, shift = 3 + 10 * brightness, 5 - 20 * brightness
        values = 1 / depth_m if self.card.depth_space == "affine_disparity" else depth_m
        return values * scale + (0 if self.card.depth_space == "scale_invariant" else shift)


def factory():
    """For `--teacher python:fakes:factory`."""
    return FakeTeacher()


class Transposed(FakeTeacher):
    """A faulty teacher that exchanges rows and columns."""

    def __call__(self, images):
        """Images (B, 3, H, W) -> depth (B, W, H)."""
        return super().__call__(images).transpose(1, 2)


def transposed():
    """For `--teacher python:fakes:transposed`."""
    return Transposed()


def relative():
    """For `--teacher python:fakes:relative`: disparities."""
    return RelativeTeacher()


def lopsided():
    """For `--teacher python:fakes:lopsided`: predictions of mirrored images differ from mirrored predictions."""
    return RelativeTeacher("metric_m", lopsided=True)


def factory_with_dpm():
    """For `--teacher python:fakes:factory_with_dpm`: half resolution, with maps."""
    return FakeTeacher(scale=2, with_dpm=True, name="fake-dpm")


class StopAt:
    """Progress that counts, and sends Ctrl-C to this process at `step` (None: never)."""

    def __init__(self, step):
        self.step, self.done = step, 0

    def task(self, title, total, unit, done=0):
        self.done = done
        return self

    def note(self, text):
        self.said = text

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def update(self, done=1, **facts):
        self.done += done
        if self.done == self.step:
            signal.raise_signal(signal.SIGINT)

"""Stage one with a teacher that takes time but no processor, as one on a GPU does: how long does it wait?

    python benchmarks/teacher_waits.py [--ms 20] [--images 192] [--rounds 3] [--data ../shared/data/kitti]

The teacher sleeps `--ms` an image and returns depth that was predicted before. Frames of KITTI are copied to `--images`
files, cut to the KB crop, 8 a batch. "bare" is the same teacher on a batch in memory. Each round measures both; the
ratio is of each round. Takes about 10 s a round.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from common import machine, ratio, write

from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.sources.readers.images import read_depth_png_m
from pipeline.sources.registry import open_source
from pipeline.sources.view import View
from pipeline.teachers.base import TeacherCard, TeacherOutput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

BATCH = 8


class SleepingTeacher:
    """Takes `ms` an image without the processor, then gives a depth that it made before."""

    needs_images, bin_edges_m = True, None

    def __init__(self, ms: float, depths_m: list[Tensor]) -> None:
        self.card = TeacherCard("python", "sleeping", "metric_m")
        self.seconds = ms / 1e3
        self.depths_m = depths_m

    def predict(self, images: Tensor | None, ids: Sequence[str]) -> TeacherOutput:
        """Depth (B, h, w) that was predicted for these images before."""
        assert images is not None
        time.sleep(self.seconds * len(ids))
        return TeacherOutput(torch.stack([self.depths_m[int(name) % len(self.depths_m)] for name in ids]))


def main() -> None:
    """Measure, print a table, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ms", type=float, default=20)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default="../shared/data/kitti")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(arguments.data)
    listed = [line.split()[0] for line in (root / "splits/sample_train.txt").read_text().splitlines()]
    kitti = open_source(f"kitti:{root}")
    frames = [sample.image_path for sample in kitti.samples(str(root / "splits/sample_train.txt"))]
    assert len(frames) == len(listed)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images/rgb"
        images.mkdir(parents=True)
        for number in range(arguments.images):
            path = Path(frames[number % len(frames)])
            path = path if path.exists() else path.with_suffix(".jpg")
            shutil.copy(path, images / f"{number:04}{path.suffix}")
        source, view = open_source(f"folder:{images.parent}"), View.parse("kb")
        pixels = np.stack([view.of_image(source.read_image(sample)[0]) for sample in source.samples("all")[:BATCH]])
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        saved = sorted((root / "teacher_png16").glob("*.png"))[: len(frames)]
        depths_m = [torch.from_numpy(read_depth_png_m(str(path), 80 / 65535)) for path in saved]
        teacher = SleepingTeacher(arguments.ms, depths_m)
        options = CacheOptions(view="kb", bins="kitti", sigma_m=0.5, batch_size=BATCH)
        bare, ours = [], []
        for number in range(arguments.rounds):
            begin = time.perf_counter()
            for _ in range(0, arguments.images, BATCH):
                teacher.predict(batch, ["0"] * BATCH)
            bare.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            cache_teacher(source, "all", teacher, Path(folder) / f"{number}.zarr", options)
            ours.append(time.perf_counter() - begin)
            print(f"round {number}: bare {bare[-1]:.2f} s, stage one {ours[-1]:.2f} s, {ours[-1] / bare[-1]:.3f}x")
    each = 1e3 / arguments.images
    row = {
        "teacher_ms": statistics.median(bare) * each,
        "ours_ms": statistics.median(ours) * each,
        "ratio": ratio(ours, bare),
    }
    head = ["bare teacher, ms an image", "stage one, ms an image", "ratio"]
    texts = [[f"{row['teacher_ms']:.1f}", f"{row['ours_ms']:.1f}", f"{row['ratio']:.3f}x"]]
    write("teacher_waits", {**machine(1), "images": arguments.images, "batch": BATCH}, head, texts, [row])


if __name__ == "__main__":
    main()

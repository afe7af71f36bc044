"""Measure how long stage one keeps a teacher waiting that needs no CPU, as on a GPU.

    python benchmarks/teacher_waits.py [--ms 20] [--images 192] [--rounds 3] [--profile FILE] [--out FILE.json]

The teacher sleeps `--ms` per image and returns stored predictions. KITTI frames are copied to `--images` files and
cropped (KB crop), 8 per batch. The bare teacher gets a batch in memory. Ratios are per round; a round takes about 10 s.
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
from common import KITTI, RESULTS, machine, markdown, median_ratio, write

from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.common.profile import Profile
from pipeline.sources.readers.images import read_depth_png_m, resolve_image
from pipeline.sources.registry import open_source
from pipeline.sources.view import View
from pipeline.teachers.base import TeacherCard, TeacherOutput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pipeline.sources.base import Source

BATCH = 8


class SleepingTeacher:
    """Sleeps `ms` per image and returns stored depths."""

    needs_images, bin_edges_m = True, None

    def __init__(self, ms: float, depths_m: list[Tensor]) -> None:
        self.card = TeacherCard("python", "sleeping", "metric_m")
        self.seconds = ms / 1e3
        self.depths_m = depths_m

    def predict(self, images: Tensor | None, ids: Sequence[str]) -> TeacherOutput:
        """Return stored depth (B, h, w)."""
        assert images is not None
        time.sleep(self.seconds * len(ids))
        return TeacherOutput(torch.stack([self.depths_m[int(name) % len(self.depths_m)] for name in ids]))


def prepare(kitti: Path, folder: Path, count: int) -> tuple[Source, Tensor, list[Tensor]]:
    """Copy frames into `folder`; return their source, a batch of images (B, 3, H, W), and stored depths (H, W)."""
    split = str(kitti / "splits/sample_train.txt")
    frames = [resolve_image(sample.image_path) for sample in open_source(f"kitti:{kitti}").samples(split)]
    images = folder / "images/rgb"
    images.mkdir(parents=True)
    for number in range(count):
        path = Path(frames[number % len(frames)])
        shutil.copy(path, images / f"{number:04}{path.suffix}")
    source, view = open_source(f"folder:{images.parent}"), View.parse("kb")
    pixels = np.stack([view.of_image(source.read_image(sample)[0]) for sample in source.samples("all")[:BATCH]])
    saved = sorted((kitti / "teacher_png16").glob("*.png"))[: len(frames)]
    depths_m = [torch.from_numpy(read_depth_png_m(str(path), 80 / 65535)) for path in saved]
    return source, torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, depths_m


def main() -> None:
    """Measure, print a table, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ms", type=float, default=20)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=KITTI)
    parser.add_argument("--profile", type=Path, help="write a timeline of the last round; see docs/timeline.py")
    parser.add_argument("--out", type=Path, default=RESULTS / "teacher_waits.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source, batch, depths_m = prepare(arguments.data, Path(folder), arguments.images)
        teacher = SleepingTeacher(arguments.ms, depths_m)
        options = CacheOptions(view="kb", bins="kitti", sigma_m=0.5, batch_size=BATCH)
        bare, ours = [], []
        for number in range(arguments.rounds):
            begin = time.perf_counter()
            for _ in range(0, arguments.images, BATCH):
                teacher.predict(batch, ["0"] * BATCH)
            bare.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            profile = Profile(record=arguments.profile is not None)
            cache_teacher(source, "all", teacher, Path(folder) / f"{number}.zarr", options, profile=profile)
            ours.append(time.perf_counter() - begin)
            print(f"round {number}: bare {bare[-1]:.2f} s, stage one {ours[-1]:.2f} s, {ours[-1] / bare[-1]:.3f}x")
    if arguments.profile:
        profile.write(arguments.profile)
    each = 1e3 / arguments.images
    row = {
        "teacher_ms": statistics.median(bare) * each,
        "ours_ms": statistics.median(ours) * each,
        "ratio": median_ratio(ours, bare),
    }
    head = ["bare teacher, ms per image", "stage one, ms per image", "ratio"]
    table = markdown(head, [[f"{row['teacher_ms']:.1f}", f"{row['ours_ms']:.1f}", f"{row['ratio']:.3f}x"]])
    facts = {**machine(1), "images": arguments.images, "batch": BATCH}
    print(facts, "", table, sep="\n")
    write(arguments.out, table, {**facts, "rows": [row]})


if __name__ == "__main__":
    main()

"""Compare the training loader with that of the released code: decode, augment, batch and normalize.

    python benchmarks/loader.py [--rounds N] [--out FILE.json]

Loaders read the same frames in turn, in one thread, with files in the page cache: KITTI frames and predictions from
../shared/data, PNG and JPEG images separately, or rendered frames without them. The peer does the steps of the released
code (KB crop, rotation of the image, flip, random crop, color, normalization) with Pillow and numpy. A second peer only
decodes and crops its two files, the lower bound for any loader of such files.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from common import KITTI, RESULTS, markdown, median_ratio, render, write
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pipeline.cache.images import cache_images
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.networks.saved_run import normalize
from pipeline.sources.readers.images import resolve_image
from pipeline.sources.registry import open_source
from pipeline.sources.view import View
from pipeline.store import open_store
from pipeline.store.images.reader import open_images
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher
from pipeline.train.augment import apply_tables
from pipeline.train.dataset import Augmentation, TrainingData, collate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.sources.base import Source

BATCH = 4
METRES_PER_UNIT = 80 / 65535
CROP_PX = (352, 704)
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
RELEASED = "released code: two files, Pillow"
FLOOR = "two files, decoded and cropped only"
OURS, CACHED = "ours: image files, store", "ours: image cache, store"


class Released(Dataset):
    """The released code: image and 16-bit depth PNG with Pillow and numpy, keyed by (epoch, number)."""

    def __init__(self, pairs: list[tuple[str, str]], *, augment: bool) -> None:
        self.pairs, self.augment = pairs, augment

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a normalized image (3, H, W) and depth (1, H, W) in metres, float32."""
        random = np.random.default_rng([0, *key])
        image_path, depth_path = self.pairs[key[1]]
        picture = Image.open(image_path).convert("RGB")
        depth_m = np.asarray(Image.open(depth_path), np.float32) * np.float32(METRES_PER_UNIT)
        left = (picture.width - 1216) // 2
        picture = picture.crop((left, picture.height - 352, left + 1216, picture.height))
        if not self.augment:
            return torch.from_numpy(np.array(picture)[:, :704]), torch.from_numpy(depth_m[:, :704])
        if random.random() < 0.5:
            picture = picture.rotate(random.uniform(-2.5, 2.5), Image.Resampling.BILINEAR)
        image = np.asarray(picture)
        if random.random() < 0.5:
            image, depth_m = image[:, ::-1], depth_m[:, ::-1]
        top, left = (int(random.integers(a - b + 1)) for a, b in zip(image.shape, CROP_PX, strict=False))
        image = image[top : top + CROP_PX[0], left : left + CROP_PX[1]].astype(np.float32) / 255
        depth_m = depth_m[top : top + CROP_PX[0], left : left + CROP_PX[1]]
        if random.random() < 0.5:
            image = image ** np.float32(random.uniform(0.9, 1.1))
            image = image * np.float32(random.uniform(0.9, 1.1)) * random.uniform(0.9, 1.1, 3).astype(np.float32)
            image = np.clip(image, 0, 1)
        image = (image - MEAN) / STD
        whole = np.ascontiguousarray(image.transpose(2, 0, 1))
        return torch.from_numpy(whole), torch.from_numpy(np.ascontiguousarray(depth_m)[None])


class Epochs:
    """Batches of keys (epoch, number); each epoch covers all frames `times` times."""

    def __init__(self, count: int, times: int = 1) -> None:
        self.count, self.times, self.epoch = count, times, 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for lap in range(self.times):
            order = np.random.default_rng(self.epoch).permutation(self.count)
            keys = [(self.epoch * self.times + lap, int(number)) for number in order]
            yield from (keys[at : at + BATCH] for at in range(0, self.count, BATCH))

    def __len__(self) -> int:
        return self.times * -(-self.count // BATCH)


def write_predictions(source: Source, folder: Path) -> Path:
    """Write the truth of all frames as 16-bit PNG predictions into a new folder, and return it."""
    folder.mkdir()
    for sample in source.samples("all"):
        depth_m = np.nan_to_num(source.read_truth_m(sample), nan=80.0)
        units = np.clip(depth_m / METRES_PER_UNIT, 1, 65535).astype(np.uint16)
        Image.fromarray(units).save(folder / f"{sample.id}.png")
    return folder


def prepare(folder: Path) -> dict[str, tuple[dict[str, Dataset], float]]:
    """Return by image format the loaders, and the size of the image cache relative to the files."""
    if KITTI.is_dir():
        source = open_source(f"kitti:{KITTI}")
        splits = {image_format: str(KITTI / f"splits/{name}.txt") for image_format, name in
                  (("KITTI, PNG", "sample_test"), ("KITTI, JPEG", "sample_train"))}  # fmt: skip
        predictions = KITTI / "teacher_png16"
    else:
        source = render(folder / "scenes", 16, (352, 1216))
        splits = {"rendered, PNG": "all"}
        predictions = write_predictions(source, folder / "predictions")
    teacher = open_teacher(
        f"predictions:{predictions}",
        device=torch.device("cpu"),
        options=TeacherOptions(metres_per_unit=METRES_PER_UNIT),
    )
    options = CacheOptions(view="kb", bins="kitti", sigma_m=0.5)
    augmentation = Augmentation(CROP_PX, rotate_deg=2.5, flip=True, color=True)
    by_format = {}
    for number, (image_format, split) in enumerate(splits.items()):
        samples = source.samples(split)
        depth, cached = folder / f"depth{number}.zarr", folder / f"images{number}.zarr"
        cache_teacher(source, split, teacher, depth, options)
        summary = cache_images(source, split, cached, view="kb")
        images = [resolve_image(sample.image_path) for sample in samples]
        names = [sample.id.replace("/", "_") for sample in samples]
        depths = [str(next(predictions.glob(f"*{name}.png"))) for name in names]
        pairs = list(zip(images, depths, strict=True))
        ours = partial(
            TrainingData,
            source,
            samples,
            View.parse("kb"),
            store=open_store(depth),
            maps_px=None,
            augmentation=augmentation,
            seed=0,
        )
        readers = {
            RELEASED: Released(pairs, augment=True),
            FLOOR: Released(pairs, augment=False),
            OURS: ours(),
            CACHED: ours(images=open_images(cached)),
        }
        file_bytes = sum(Path(image).stat().st_size for image in images)
        by_format[image_format] = readers, summary.bytes_in_all / file_bytes
    return by_format


def measure(readers: dict[str, Dataset], rounds: int, workers: int) -> dict[str, list[float]]:
    """Return samples per second and core by loader, one figure per round.

    Without workers this is per second of processor time, which other work on the machine does not lengthen.
    """
    clock = time.perf_counter if workers else time.process_time
    loaders = {}
    for name, data in readers.items():
        epochs = Epochs(len(data), times=3 if workers else 1)
        loaders[name] = (
            epochs,
            DataLoader(
                data,
                batch_sampler=epochs,
                collate_fn=collate if isinstance(data, TrainingData) else None,
                num_workers=workers,
                persistent_workers=workers > 0,
            ),
        )
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds + 1):
        for name, (epochs, loader) in loaders.items():
            epochs.epoch, count = number, 0
            begin = clock()
            for batch in loader:
                # The released code normalizes in the loader, ours on the network's device.
                images = (
                    apply_tables(batch.image, normalize(batch.color_tables)) if name in {OURS, CACHED} else batch[0]
                )
                count += len(images)
            if number:  # the first round warms up
                rates[name].append(count / (clock() - begin) / max(workers, 1))
    return rates


def table(rows: list[dict]) -> str:
    """Return the Markdown table, and the sizes of the image caches."""
    head = ["images", "loader workers", "loader", "samples/s per core", "ratio to released code"]
    body = []
    for row in rows:
        figures = [f"{row['samples_per_s_core']:.1f}", f"{row['of_released']:.2f}x"]
        body.append([row["images"], str(row["workers"]), row["loader"], *figures])
    sizes = {row["images"]: row["kept_bytes_of_file"] for row in rows if row["kept_bytes_of_file"]}
    note = "; ".join(f"{image_format} {ratio:.2f}x" for image_format, ratio in sizes.items())
    return markdown(head, body) + f"\nSize of the image cache relative to the image files: {note}.\n"


def main() -> None:
    """Measure, print a table, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "loader.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for image_format, (readers, size_ratio) in prepare(Path(folder)).items():
            for workers in (0, 2):
                rates = measure(readers, arguments.rounds if workers == 0 else max(2, arguments.rounds // 3), workers)
                for name, own in rates.items():
                    rows.append(
                        {
                            "images": image_format,
                            "workers": workers,
                            "loader": name,
                            "samples_per_s_core": round(statistics.median(own), 1),
                            "min": round(min(own), 1),
                            "max": round(max(own), 1),
                            "of_released": round(median_ratio(own, rates[RELEASED]), 2),
                            "kept_bytes_of_file": round(size_ratio, 2) if name == CACHED else None,
                        }
                    )
    print(table(rows))
    machine = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": 1,
        "date": time.strftime("%Y-%m-%d"),
        "rounds": arguments.rounds,
        "batch": BATCH,
        "crop_px": list(CROP_PX),
    }
    write(arguments.out, table(rows), machine | {"rows": rows})


if __name__ == "__main__":
    main()

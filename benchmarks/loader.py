"""The training loader beside the released code's way: image and target decoded, augmented, batched and normalised.

    python benchmarks/loader.py [--rounds N] [--out FILE.json]

Readers take the same frames in turn, one thread, files in the page cache: the KITTI frames and predictions of
../shared/data where they are, those with PNG images and those with JPEG images apart; else frames that the project
renders. The peer does what DESIGN says of the released code (KB crop, rotation of the image alone, flip, random crop,
colour, normalisation) with Pillow and numpy. Since its choice of library for a rotation is its own affair, a second one
decodes its two files, crops them, and does no more: the least that any loader of such files can do.
"""

from __future__ import annotations

import argparse
import json
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
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pipeline.cache.images import cache_images
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.networks.saved_run import normalise
from pipeline.sources.readers.images import resolve_image
from pipeline.sources.registry import open_source
from pipeline.sources.view import View
from pipeline.store import open_store
from pipeline.store.images.reader import open_images
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher
from pipeline.train.augment import by_table
from pipeline.train.dataset import Augmentation, TrainingData, collate

if TYPE_CHECKING:
    from collections.abc import Iterator

KITTI = Path(__file__).parents[2] / "shared" / "data" / "kitti"
BATCH = 4
METRES_PER_UNIT = 80 / 65535
CROP_PX = (352, 704)
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
SPREAD = np.array([0.229, 0.224, 0.225], np.float32)
RELEASED = "released way: two files, Pillow"
FLOOR = "two files decoded and cropped, no more"
OURS, KEPT = "ours: image files, store", "ours: kept images, store"


class Released(Dataset):
    """Image and 16-bit PNG of metres, through Pillow and numpy; keyed by (epoch, number)."""

    def __init__(self, pairs: list[tuple[str, str]], *, augment: bool) -> None:
        self.pairs, self.augment = pairs, augment

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(3, H, W) normalised and (1, H, W) metres, float32."""
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
        image = (image - MEAN) / SPREAD
        whole = np.ascontiguousarray(image.transpose(2, 0, 1))
        return torch.from_numpy(whole), torch.from_numpy(np.ascontiguousarray(depth_m)[None])


class Epochs:
    """Batches of keys (epoch, number), each epoch over all frames `times` times."""

    def __init__(self, count: int, times: int = 1) -> None:
        self.count, self.times, self.epoch = count, times, 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for lap in range(self.times):
            order = np.random.default_rng(self.epoch).permutation(self.count)
            keys = [(self.epoch * self.times + lap, int(number)) for number in order]
            yield from (keys[at : at + BATCH] for at in range(0, self.count, BATCH))

    def __len__(self) -> int:
        return self.times * -(-self.count // BATCH)


def prepare(place: Path) -> dict[str, tuple[dict[str, Dataset], float]]:
    """Kind of image -> readers by name, and bytes a kept image takes relative to its file."""
    if KITTI.is_dir():
        source = open_source(f"kitti:{KITTI}")
        splits = {kind: str(KITTI / f"splits/{name}.txt") for kind, name in
                  (("KITTI, PNG", "sample_test"), ("KITTI, JPEG", "sample_train"))}  # fmt: skip
        predictions = KITTI / "teacher_png16"
    else:
        from scenes.dataset import make_scenes

        make_scenes(place / "scenes", count=16, size_px=(352, 1216))
        source = open_source(f"scenes:{place / 'scenes'}")
        splits = {"rendered, PNG": "all"}
        predictions = place / "predictions"
        predictions.mkdir()
        for sample in source.samples("all"):
            depth_m = np.nan_to_num(source.read_truth_m(sample), nan=80.0)
            units = np.clip(depth_m / METRES_PER_UNIT, 1, 65535).astype(np.uint16)
            Image.fromarray(units).save(predictions / f"{sample.id}.png")
    asked = TeacherOptions(metres_per_unit=METRES_PER_UNIT)
    teacher = open_teacher(f"predictions:{predictions}", device=torch.device("cpu"), options=asked)
    options = CacheOptions(view="kb", bins="kitti", sigma_m=0.5)
    augmentation = Augmentation(CROP_PX, rotate_deg=2.5, flip=True, colour=True)
    found = {}
    for number, (kind, split) in enumerate(splits.items()):
        samples = source.samples(split)
        depth, kept = place / f"depth{number}.zarr", place / f"images{number}.zarr"
        cache_teacher(source, split, teacher, depth, options)
        summary = cache_images(source, split, kept, view="kb")
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
            KEPT: ours(images=open_images(kept)),
        }
        file_bytes = sum(Path(image).stat().st_size for image in images)
        found[kind] = readers, summary.bytes_in_all / file_bytes
    return found


def measure(readers: dict[str, Dataset], rounds: int, workers: int) -> dict[str, list[float]]:
    """Samples a second and core of each reader, a figure a round, readers in turn.

    Without workers a second is one of this process's processor time, which other work on the machine does not lengthen.
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
                # The released way has normalised in the loader; ours does where the network is.
                images = by_table(batch.image, normalise(batch.colours)) if name in {OURS, KEPT} else batch[0]
                count += len(images)
            if number:  # the first warms caches and starts workers
                rates[name].append(count / (clock() - begin) / max(workers, 1))
    return rates


def main() -> None:
    """Measure, print a table, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loader.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for kind, (readers, size_ratio) in prepare(Path(place)).items():
            for workers in (0, 2):
                rates = measure(readers, arguments.rounds if workers == 0 else max(2, arguments.rounds // 3), workers)
                for name, own in rates.items():
                    ratio = statistics.median(a / b for a, b in zip(own, rates[RELEASED], strict=True))
                    rows.append(
                        {
                            "images": kind,
                            "workers": workers,
                            "loader": name,
                            "samples_per_s_core": round(statistics.median(own), 1),
                            "min": round(min(own), 1),
                            "max": round(max(own), 1),
                            "of_released": round(ratio, 2),
                            "kept_bytes_of_file": round(size_ratio, 2) if name == KEPT else None,
                        }
                    )
    head = "| images | loader workers | loader | samples/s and core | of the released way |\n"
    head += "| --- | --- | --- | --- | --- |\n"
    lines = [
        f"| {row['images']} | {row['workers']} | {row['loader']} | {row['samples_per_s_core']:.1f} | "
        f"{row['of_released']:.2f}x |\n"
        for row in rows
    ]
    kept = {row["images"]: row["kept_bytes_of_file"] for row in rows if row["kept_bytes_of_file"]}
    note = "; ".join(f"{kind}: {ratio:.2f}x" for kind, ratio in kept.items())
    table = head + "".join(lines) + f"\nBytes of kept images, of the image files': {note}.\n"
    print(table)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": 1,
        "date": time.strftime("%Y-%m-%d"),
        "rounds": arguments.rounds,
        "batch": BATCH,
        "crop_px": list(CROP_PX),
    }
    arguments.out.write_text(json.dumps(machine | {"rows": rows}, indent=2) + "\n")
    arguments.out.with_suffix(".md").write_text(table)


if __name__ == "__main__":
    main()

"""A training step from the store beside one with the teacher in the loop (online distillation).

    python benchmarks/online.py [--student NAME] [--teachers NAME ...] [--threads N] [--steps N]

Student, loss and batch are the same: online, the teacher answers for each batch, without gradients, and its depth is
the target; offline, the same depth comes from a store, and nothing of the teacher is in memory. Each is measured
in a process of its own; steps are timed after one that warms up. Memory is the most that the process held above what
it held before networks and data were there; Linux alone tells it. Teachers are networks of ours with random weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from overheads import BINS, RandomTeacher, machine, render, write

from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.losses.tiekd import TieKdLoss
from pipeline.networks.registry import build_student
from pipeline.networks.saved_run import normalise
from pipeline.sources.registry import open_source
from pipeline.sources.view import View
from pipeline.store import open_store
from pipeline.train.augment import by_table
from pipeline.train.dataset import Augmentation, TrainingData
from pipeline.train.loader import Batches
from pipeline.train.optimizer import Optimizer
from pipeline.train.options import TrainOptions
from pipeline.train.sampler import EpochBatchSampler

FRAMES, BATCH = 16, 4
SIZE_PX = (96, 320)
TEACHERS = ("resnet18-lean", "mobilenetv2", "resnet50")
CPU = torch.device("cpu")


def memory_mb(key: str) -> float:
    """What the process holds now (`VmRSS`) or held at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def measure(root: Path, student: str, teacher_name: str | None, threads: int, steps: int) -> dict:
    """Times of steps, and memory; to be called in a fresh process."""
    torch.set_num_threads(threads)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before_mb = memory_mb("VmRSS")
    source, store = open_source(f"scenes:{root / 'scenes'}"), open_store(root / "store.zarr")
    samples = source.samples("all")
    teacher = None if teacher_name is None else RandomTeacher(teacher_name, maps=False)
    augmentation = Augmentation(None, 0.0, flip=True, colour=True)
    data = TrainingData(source, samples, View(), store=store, maps_px=None, augmentation=augmentation, seed=0)
    sampler = EpochBatchSampler(len(samples), BATCH, 0)
    torch.manual_seed(0)
    network = build_student(student, BINS).train()
    optimizer = Optimizer(network, TrainOptions(epochs=1, batch_size=BATCH, ema=0.0), 10 * steps, CPU)
    loss = TieKdLoss(store.bin_edges_m, sigma_m=0.5)
    times_s: list[float] = []
    begin, epoch = time.perf_counter(), 0
    while len(times_s) <= steps:
        sampler.set_epoch(epoch)
        epoch += 1
        for batch in Batches(data, sampler, 0, CPU):
            target_m = batch.target_depth_m
            if teacher is not None:
                target_m = teacher.predict(by_table(batch.image, batch.colours), []).depth[:, None]
            optimizer.zero_grad()
            optimizer.backward(loss.terms(network(by_table(batch.image, normalise(batch.colours))), target_m)["loss"])
            optimizer.clip_gradients()
            optimizer.step()
            now = time.perf_counter()
            times_s.append(now - begin)
            begin = now
    return {"ms": 1e3 * statistics.median(times_s[1:]) / BATCH, "memory_mb": memory_mb("VmHWM") - before_mb}


def main() -> None:
    """Measure, print a table, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="lean")
    parser.add_argument("--teachers", nargs="+", default=list(TEACHERS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = render(root / "scenes", FRAMES, SIZE_PX)
        options = CacheOptions(bins="linear:64:0.001:80", sigma_m=0.5, batch_size=BATCH)
        cache_teacher(source, "all", RandomTeacher("lean", maps=False), root / "store.zarr", options)
        found = {}
        for teacher in (None, *arguments.teachers):
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                # The store's step is short: more of them, for a steadier median
                steps = arguments.steps * (1 if teacher else 4)
                work = (root, arguments.student, teacher, arguments.threads, steps)
                found[teacher] = pool.submit(measure, *work).result()
    base = found[None]
    rows, data = [], []
    for teacher, one in found.items():
        with torch.device("meta"):
            parameters = sum(part.numel() for part in build_student(teacher, BINS).parameters()) if teacher else None
        slower, larger = one["ms"] / base["ms"], one["memory_mb"] / base["memory_mb"]
        data.append({"teacher": teacher, "parameters": parameters, **one, "time_ratio": slower, "memory_ratio": larger})
        told = f"online: `{teacher}`, {parameters / 1e6:.1f} M parameters" if teacher else "offline: the store"
        rows.append([told, f"{one['ms']:.1f}", f"{slower:.2f}x", f"{one['memory_mb']:.0f}", f"{larger:.2f}x"])
    about = {**machine(arguments.threads), "student": arguments.student, "size_px": SIZE_PX, "batch": BATCH}
    write("online", about, ["targets from", "ms an image", "of offline", "MB at most", "of offline"], rows, data)


if __name__ == "__main__":
    main()

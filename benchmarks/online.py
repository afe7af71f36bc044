"""Compare a training step from the store with a step that runs the teacher (online distillation).

    python benchmarks/online.py [--student NAME] [--teachers NAME ...] [--threads N] [--steps N] [--out FILE.json]

Student, loss and batch are the same. Online, the teacher predicts the target depth of each batch, without gradients.
Offline, the depth comes from a store and no teacher is in memory. Each row runs in a fresh process and is timed after
one warm-up step. Memory is the peak above the memory before networks and data were loaded (Linux only). Teachers have
random weights.
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
from common import BINS, RESULTS, RandomTeacher, machine, markdown, memory_mb, render, reset_peak_memory, write

from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.losses.tiekd import TieKdLoss
from pipeline.networks.registry import build_student
from pipeline.networks.saved_run import normalize
from pipeline.sources.registry import open_source
from pipeline.sources.view import View
from pipeline.store import open_store
from pipeline.train.augment import apply_tables
from pipeline.train.dataset import Augmentation, TrainingData
from pipeline.train.loader import Batches
from pipeline.train.optimizer import Optimizer
from pipeline.train.options import TrainOptions
from pipeline.train.sampler import EpochBatchSampler

FRAMES, BATCH = 16, 4
SIZE_PX = (96, 320)
TEACHERS = ("resnet18-lean", "mobilenetv2", "resnet50")
CPU = torch.device("cpu")


def measure(root: Path, student: str, teacher_name: str | None, threads: int, steps: int) -> dict:
    """Return time and memory of training steps; call it in a fresh process."""
    torch.set_num_threads(threads)
    before_mb = reset_peak_memory()
    source, store = open_source(f"scenes:{root / 'scenes'}"), open_store(root / "store.zarr")
    samples = source.samples("all")
    teacher = None if teacher_name is None else RandomTeacher(teacher_name, maps=False)
    augmentation = Augmentation(None, 0.0, flip=True, color=True)
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
                target_m = teacher.predict(apply_tables(batch.image, batch.color_tables), []).depth[:, None]
            optimizer.zero_grad()
            optimizer.backward(
                loss.terms(network(apply_tables(batch.image, normalize(batch.color_tables))), target_m)["loss"]
            )
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
    parser.add_argument("--out", type=Path, default=RESULTS / "online.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = render(root / "scenes", FRAMES, SIZE_PX)
        options = CacheOptions(bins="linear:64:0.001:80", sigma_m=0.5, batch_size=BATCH)
        cache_teacher(source, "all", RandomTeacher("lean", maps=False), root / "store.zarr", options)
        results = {}
        for teacher in (None, *arguments.teachers):
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                # Steps from the store are short; more of them give a steadier median.
                steps = arguments.steps * (1 if teacher else 4)
                job = pool.submit(measure, root, arguments.student, teacher, arguments.threads, steps)
                results[teacher] = job.result()
    base = results[None]
    cells, rows = [], []
    for teacher, result in results.items():
        with torch.device("meta"):
            parameters = sum(part.numel() for part in build_student(teacher, BINS).parameters()) if teacher else None
        slower, larger = result["ms"] / base["ms"], result["memory_mb"] / base["memory_mb"]
        row = {"teacher": teacher, "parameters": parameters, **result}
        rows.append(row | {"time_ratio": slower, "memory_ratio": larger})
        label = f"online: `{teacher}`, {parameters / 1e6:.1f} M parameters" if teacher else "offline: the store"
        cells.append([label, f"{result['ms']:.1f}", f"{slower:.2f}x", f"{result['memory_mb']:.0f}", f"{larger:.2f}x"])
    facts = {**machine(arguments.threads), "student": arguments.student, "size_px": SIZE_PX, "batch": BATCH}
    table = markdown(["targets from", "ms per image", "ratio", "peak MB", "ratio"], cells)
    print(facts, "", table, sep="\n")
    write(arguments.out, table, {**facts, "rows": rows})


if __name__ == "__main__":
    main()

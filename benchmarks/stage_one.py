"""Stage one beside the bare teacher over the same batches, already in memory.

    python benchmarks/stage_one.py [--threads N] [--teacher NAME] [--rounds N]

The teacher is a network with random weights that takes some 50 to 100 ms an image. `--threads` is torch's; with as
many as the machine has cores, reading and encoding compete with the teacher. Rounds in turn, ratios of each round;
the ratio of processor time is the floor where no core is free. Reading and encoding an image are timed on their own
too. Whole small stores are made: what a store costs once (its beginning, checks and end) is shared by few images.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from overheads import RandomTeacher, machine, ratio, render, write

from pipeline.cache.plan import CacheOptions, plan_store
from pipeline.cache.run import cache_teacher
from pipeline.sources.view import View
from pipeline.store.write.writer import encode_sample

if TYPE_CHECKING:
    from pipeline.sources.base import Source

FRAMES, BATCH, SHARD = 48, 4, 16
SIZE_PX = (176, 608)


def parts_ms(
    source: Source, teacher: RandomTeacher, batches: list[torch.Tensor], options: CacheOptions
) -> dict[str, float]:
    """Milliseconds an image, in one thread with nothing beside it: reading, and encoding."""
    samples = source.samples("all")
    spec = plan_store(source, samples, teacher, View(), options)
    times: dict[str, list[float]] = {"read": [], "encode": []}
    for number, sample in enumerate(samples[:8]):
        begin = time.perf_counter()
        source.read_image(sample)
        times["read"].append(time.perf_counter() - begin)
        out = teacher.predict(batches[number // BATCH], [])
        depth = out.depth[number % BATCH].numpy()
        maps = None if out.dpm is None else out.dpm[number % BATCH].numpy()
        begin = time.perf_counter()
        encode_sample(spec, depth, maps)
        times["encode"].append(time.perf_counter() - begin)
    return {name: 1e3 * statistics.median(found) for name, found in times.items()}


def main() -> None:
    """Measure, print a table, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--teacher", default="mobilenetv2-lean")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows, data = [], []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        source = render(place / "scenes", FRAMES, SIZE_PX)
        images = np.stack([source.read_image(sample)[0] for sample in source.samples("all")])
        whole = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        batches = list(whole.split(BATCH))
        options = CacheOptions(batch_size=BATCH, bins="linear:64:0.001:80", sigma_m=0.5, samples_per_shard=SHARD)
        for what, maps in (("depth, Gaussian maps", False), ("depth and sparse maps", True)):
            teacher = RandomTeacher(arguments.teacher, maps=maps)
            chosen = CacheOptions(batch_size=BATCH, samples_per_shard=SHARD) if maps else options
            times: dict[str, list[float]] = {"bare": [], "ours": [], "bare cpu": [], "ours cpu": []}
            teacher.predict(batches[0], [])
            for number in range(arguments.rounds):
                begin, cpu = time.perf_counter(), time.process_time()
                for batch in batches:
                    teacher.predict(batch, [])
                times["bare"].append(time.perf_counter() - begin)
                times["bare cpu"].append(time.process_time() - cpu)
                begin, cpu = time.perf_counter(), time.process_time()
                out = place / f"{maps}{number}.zarr"
                cache_teacher(source, "all", teacher, out, chosen)
                times["ours"].append(time.perf_counter() - begin)
                times["ours cpu"].append(time.process_time() - cpu)
            size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / FRAMES
            parts = parts_ms(source, teacher, batches, chosen)
            found = {
                "stored": what,
                "teacher_ms": 1e3 * statistics.median(times["bare"]) / FRAMES,
                "ours_ms": 1e3 * statistics.median(times["ours"]) / FRAMES,
                "ratio": ratio(times["ours"], times["bare"]),
                "least_ratio": min(times["ours"]) / min(times["bare"]),
                "cpu_ratio": ratio(times["ours cpu"], times["bare cpu"]),
                "read_ms": parts["read"],
                "encode_ms": parts["encode"],
                "kb_each": size / 1e3,
            }
            data.append(found)
            rows.append(
                [
                    what,
                    f"{found['teacher_ms']:.1f}",
                    f"{found['ours_ms']:.1f}",
                    f"{found['ratio']:.3f}x",
                    f"{found['least_ratio']:.3f}x",
                    f"{found['cpu_ratio']:.3f}x",
                    f"{found['read_ms']:.2f}",
                    f"{found['encode_ms']:.2f}",
                    f"{found['kb_each']:.1f}",
                ]
            )
    head = ["stored", "bare teacher, ms", "stage one, ms", "ratio", "of minima", "of processor time"]
    head += ["read, ms", "encode, ms", "KB"]
    write("stage_one", {**machine(arguments.threads), "frames": FRAMES, "size_px": SIZE_PX}, head, rows, data)


if __name__ == "__main__":
    main()

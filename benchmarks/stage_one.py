"""Compare stage one with the bare teacher on the same batches, already in memory.

    python benchmarks/stage_one.py [--threads N] [--teacher NAME] [--rounds N] [--out FILE.json]

The teacher is a network with random weights that takes about 50 to 100 ms per image. `--threads` is torch's; with as
many as the machine has cores, reading and encoding compete with the teacher. Both run in turn, and ratios are per
round; the ratio of processor time is the floor where no core is free. Reading and encoding are also timed alone. Each
round writes a whole small store, so that few images carry the fixed costs of a store (setup, checks, manifest).
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
from common import RESULTS, RandomTeacher, machine, markdown, median_ratio, render, write

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
    """Return milliseconds per image for reading and for encoding, in one thread with nothing else running."""
    samples = source.samples("all")
    spec, _ = plan_store(source, samples, teacher, View(), options)
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
    return {name: 1e3 * statistics.median(times_s) for name, times_s in times.items()}


def measure(
    source: Source,
    teacher: RandomTeacher,
    batches: list[torch.Tensor],
    options: CacheOptions,
    rounds: int,
    folder: Path,
) -> dict[str, float]:
    """Return the figures of one row; stores are written into `folder`."""
    times: dict[str, list[float]] = {"bare": [], "ours": [], "bare cpu": [], "ours cpu": []}
    teacher.predict(batches[0], [])
    for number in range(rounds):
        begin, cpu = time.perf_counter(), time.process_time()
        for batch in batches:
            teacher.predict(batch, [])
        times["bare"].append(time.perf_counter() - begin)
        times["bare cpu"].append(time.process_time() - cpu)
        begin, cpu = time.perf_counter(), time.process_time()
        out = folder / f"{number}.zarr"
        cache_teacher(source, "all", teacher, out, options)
        times["ours"].append(time.perf_counter() - begin)
        times["ours cpu"].append(time.process_time() - cpu)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / FRAMES
    parts = parts_ms(source, teacher, batches, options)
    return {
        "teacher_ms": 1e3 * statistics.median(times["bare"]) / FRAMES,
        "ours_ms": 1e3 * statistics.median(times["ours"]) / FRAMES,
        "ratio": median_ratio(times["ours"], times["bare"]),
        "least_ratio": min(times["ours"]) / min(times["bare"]),
        "cpu_ratio": median_ratio(times["ours cpu"], times["bare cpu"]),
        "read_ms": parts["read"],
        "encode_ms": parts["encode"],
        "kb_each": size / 1e3,
    }


def table(rows: list[dict]) -> str:
    """Return the Markdown table."""
    head = ["stored", "bare teacher, ms", "stage one, ms", "ratio", "ratio of minima", "ratio of processor time"]
    columns = {
        "teacher_ms": "{:.1f}",
        "ours_ms": "{:.1f}",
        "ratio": "{:.3f}x",
        "least_ratio": "{:.3f}x",
        "cpu_ratio": "{:.3f}x",
        "read_ms": "{:.2f}",
        "encode_ms": "{:.2f}",
        "kb_each": "{:.1f}",
    }
    body = [[row["stored"], *(text.format(row[key]) for key, text in columns.items())] for row in rows]
    return markdown([*head, "read, ms", "encode, ms", "KB"], body)


def main() -> None:
    """Measure, print a table, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--teacher", default="mobilenetv2-lean")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "stage_one.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        source = render(Path(temporary) / "scenes", FRAMES, SIZE_PX)
        images = np.stack([source.read_image(sample)[0] for sample in source.samples("all")])
        batches = list((torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).split(BATCH))
        gaussian = CacheOptions(batch_size=BATCH, bins="linear:64:0.001:80", sigma_m=0.5, samples_per_shard=SHARD)
        sparse = CacheOptions(batch_size=BATCH, samples_per_shard=SHARD)
        for label, maps, options in (
            ("depth, Gaussian maps", False, gaussian),
            ("depth and sparse maps", True, sparse),
        ):
            teacher, folder = RandomTeacher(arguments.teacher, maps=maps), Path(temporary) / f"maps-{maps}"
            folder.mkdir()
            rows.append({"stored": label, **measure(source, teacher, batches, options, arguments.rounds, folder)})
    facts = {**machine(arguments.threads), "frames": FRAMES, "size_px": SIZE_PX}
    print(facts, "", table(rows), sep="\n")
    write(arguments.out, table(rows), {**facts, "rows": rows})


if __name__ == "__main__":
    main()

"""Compare stage one with a teacher in this process and the same teacher in a process of its own (`teacher_python`).

    python benchmarks/foreign_teacher.py [--ms 20] [--images 192] [--rounds 5] [--python PYTHON] [--out FILE.json]

Two teachers take about `--ms` per image: one sleeps, as if a GPU computed; one computes, a convolution in one thread,
and competes with reading, encoding and copying where there are few cores. Both return depth of the view's size. KITTI
frames are copied to `--images` files and cropped (KB crop, 352x1216), 8 per batch. Whole stores are written in turn;
ratios are per round. Single calls are timed too: they depend less on what else the machine does. Opening the teacher is
timed alone. A round takes about 20 s.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from common import KITTI, RESULTS, machine, markdown, median_ratio, write
from teacher_waits import BATCH, prepare

from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.teachers.base import StagingTeacher
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.sources.base import Source

CALLS = 20
MODULE = """
import os
import time
import torch

MS = float(os.environ["BENCHMARK_MS"])
REPEATS = int(os.environ["BENCHMARK_REPEATS"])


class Sleeps:
    card = {"name": "sleeps", "depth_space": "metric_m", "weights": []}

    def __call__(self, images):
        begin = time.perf_counter()
        depth_m = 2 + 30 * images[:, 0]
        time.sleep(max(0, MS / 1e3 * len(images) - (time.perf_counter() - begin)))
        return depth_m


class Computes:
    card = {"name": "computes", "depth_space": "metric_m", "weights": []}

    def __init__(self):
        torch.manual_seed(0)
        self.net = torch.nn.Conv2d(3, 8, 7, stride=4, padding=3)

    def __call__(self, images):
        for image in images.split(1):
            for _ in range(REPEATS):
                self.net(image)
        return 2 + 30 * images[:, 0]
"""


def repeats_for(ms: float, batch: Tensor) -> int:
    """Return how often the convolution runs in `ms` milliseconds on one image."""
    image, net = batch[:1], torch.nn.Conv2d(3, 8, 7, stride=4, padding=3)
    times = []
    with torch.no_grad():
        for _ in range(30):
            begin = time.perf_counter()
            net(image)
            times.append(time.perf_counter() - begin)
    return max(1, round(ms / 1e3 / statistics.median(times)))


def calls_ms(teachers: dict[str, Any], batch: Tensor) -> dict[str, float]:
    """Return the median milliseconds of one call with a batch, in turn. Stage one stages batches in another thread."""
    times: dict[str, list[float]] = {name: [] for name in teachers}
    for _ in range(CALLS):
        for name, teacher in teachers.items():
            images = teacher.stage(batch) if isinstance(teacher, StagingTeacher) else batch
            begin = time.perf_counter()
            teacher.predict(images, [""] * len(batch))
            times[name].append(time.perf_counter() - begin)
    return {name: 1e3 * statistics.median(times_s) for name, times_s in times.items()}


def measure(source: Source, batch: Tensor, factory: str, python: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Return the figures of one row; stores are written into `folder`."""
    images = len(source.samples("all"))
    options = CacheOptions(view="kb", bins="kitti", sigma_m=0.5, batch_size=BATCH)
    times: dict[str, list[float]] = {"here": [], "there": []}
    teachers: dict[str, Any] = {}
    for name, asked in (("here", None), ("there", python)):
        begin = time.perf_counter()
        spec = f"python:benchmark_teachers:{factory}"
        teachers[name] = open_teacher(spec, device=torch.device("cpu"), options=TeacherOptions(teacher_python=asked))
        opening_s = time.perf_counter() - begin
    calls = calls_ms(teachers, batch)
    for number in range(rounds):
        for name in ("here", "there") if number % 2 else ("there", "here"):
            begin = time.perf_counter()
            cache_teacher(source, "all", teachers[name], folder / f"{factory}-{name}-{number}.zarr", options)
            times[name].append(time.perf_counter() - begin)
    return {
        "call_here_ms": calls["here"],
        "call_there_ms": calls["there"],
        "call_ratio": calls["there"] / calls["here"],
        "here_ms": 1e3 * statistics.median(times["here"]) / images,
        "there_ms": 1e3 * statistics.median(times["there"]) / images,
        "ratio": median_ratio(times["there"], times["here"]),
        "least_ratio": min(times["there"]) / min(times["here"]),
        "ratios": [there / here for there, here in zip(times["there"], times["here"], strict=True)],
        "opening_s": opening_s,
    }


def main() -> None:
    """Measure, print a table, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ms", type=float, default=20)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--data", type=Path, default=KITTI)
    parser.add_argument("--out", type=Path, default=RESULTS / "foreign_teacher.json")
    arguments = parser.parse_args()
    out, data = arguments.out.absolute(), arguments.data.absolute()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source, batch, _ = prepare(data, folder, arguments.images)
        (folder / "benchmark_teachers.py").write_text(MODULE)
        os.environ.update(BENCHMARK_MS=str(arguments.ms), BENCHMARK_REPEATS=str(repeats_for(arguments.ms, batch)))
        os.chdir(folder)  # its modules are found there
        for factory in ("Sleeps", "Computes"):
            row = measure(source, batch, factory, arguments.python, folder, arguments.rounds)
            rows.append({"teacher": factory.lower(), **row})
            print(rows[-1], flush=True)
        os.chdir("/")
    head = ["teacher", "one batch here, ms", "in its process, ms", "ratio", "stage one here, ms per image"]
    head += ["with its process, ms per image", "ratio", "ratio of minima", "opened in, s"]
    columns = {
        "call_here_ms": "{:.1f}",
        "call_there_ms": "{:.1f}",
        "call_ratio": "{:.3f}x",
        "here_ms": "{:.1f}",
        "there_ms": "{:.1f}",
        "ratio": "{:.3f}x",
        "least_ratio": "{:.3f}x",
        "opening_s": "{:.1f}",
    }
    table = markdown(
        head, [[row["teacher"], *(text.format(row[key]) for key, text in columns.items())] for row in rows]
    )
    facts = {**machine(1), "images": arguments.images, "batch": BATCH, "rounds": arguments.rounds}
    print(facts, "", table, sep="\n")
    write(out, table, {**facts, "rows": rows})


if __name__ == "__main__":
    main()

"""What each student costs: parameters, multiplications, time and memory for one image on a CPU.

    python benchmarks/students.py [--students NAME ...] [--threads N] [--out FILE.json]

Each student is measured in a process of its own, in the demo's setting (64 bins, 128x416) and the paper's (257 bins,
352x1216), with one image, without flip average, and with random weights, on which time does not depend. `network` is
from a normalised image to logits; `depth` adds normalisation, softmax, expectation and upsampling to the image's size,
as `evaluate-student` does. Times are the median of up to 20 calls, or of as many as 5 seconds allow but at least 3,
after one that warms up; where that one takes over a minute, there is no time. `cpu` is the processor time of such a
call: with one thread on an idle machine it is the time itself, and a busy machine changes it less. GMAC counts the
multiplications of convolutions and matrix products (half of what torch's FlopCounterMode counts). Memory is the most
that the process held above what it held before the student was built, weights included; Linux alone tells it.
`--students timm:NAME` measures one of timm.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.depth.bins import bin_edges
from pipeline.networks.predict import predict_depth_m
from pipeline.networks.registry import STUDENTS, build_student

if TYPE_CHECKING:
    from collections.abc import Callable

SETTINGS = ((64, (128, 416)), (257, (352, 1216)))
CALLS = (3, 20)
CALLS_S = 5.0
TOO_LONG_S = 60.0


def count(name: str, bin_count: int, size_px: tuple[int, int]) -> dict:
    """Parameters and multiplications, on a network without memory."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as flops:
        student = build_student(name, bin_count).eval()
        student(torch.empty(1, 3, *size_px))
    parameters = sum(part.numel() for part in student.parameters())
    return {"parameters": parameters, "gmac": round(flops.get_total_flops() / 2e9, 3)}


def times_s(call: Callable[[], object]) -> list[tuple[float, float]]:
    """Seconds and processor seconds of each call, in turn; none where the first one takes too long."""
    begin = time.perf_counter()
    call()
    if time.perf_counter() - begin > TOO_LONG_S:
        return []
    found: list[tuple[float, float]] = []
    while len(found) < CALLS[0] or (len(found) < CALLS[1] and sum(one for one, _ in found) < CALLS_S):
        begin, cpu = time.perf_counter(), time.process_time()
        call()
        found.append((time.perf_counter() - begin, time.process_time() - cpu))
    return found


def memory_mb(key: str) -> float:
    """What the process holds now (`VmRSS`) or held at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def measure(name: str, bin_count: int, size_px: tuple[int, int], threads: int) -> dict:
    """Times and memory; to be called in a fresh process, whose memory is looked at."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    edges_m = bin_edges(bin_count, 1e-3, 80).float()
    images = torch.rand(1, 3, *size_px)
    known = Path("/proc/self/clear_refs").exists()
    if known:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
        before = memory_mb("VmRSS")
    student = build_student(name, bin_count).eval()
    with torch.inference_mode():
        network = times_s(lambda: student(images))
    depth = times_s(lambda: predict_depth_m(student, images, edges_m, flip_average=False)) if network else []
    row = {"calls": len(depth), "memory_mb": round(memory_mb("VmHWM") - before) if known else None}
    for what, found in (("network", network), ("depth", depth)):
        elapsed, cpu = zip(*found, strict=True) if found else ((), ())
        row[f"{what}_ms"] = round(1e3 * statistics.median(elapsed), 1) if found else None
        row[f"{what}_min_ms"] = round(1e3 * min(elapsed), 1) if found else None
        row[f"{what}_cpu_ms"] = round(1e3 * statistics.median(cpu), 1) if found else None
    return row


def cpu_model() -> str:
    """Name of the processor, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Measure, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=list(STUDENTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/students.json"))
    arguments = parser.parse_args()
    machine = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": arguments.threads,
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    context = multiprocessing.get_context("spawn")
    rows = []
    for bin_count, size_px in SETTINGS:
        print(f"\n{bin_count} bins, {size_px[0]}x{size_px[1]} px, one image")
        titles = {"parameters": 12, "GMAC": 9, "network ms": 12, "cpu ms": 9, "depth ms": 11, "cpu ms ": 9, "MB": 7}
        print(f"{'student':<28}" + "".join(f"{title.strip():>{width}}" for title, width in titles.items()))
        for name in arguments.students:
            with ProcessPoolExecutor(1, context) as pool:
                found = pool.submit(measure, name, bin_count, size_px, arguments.threads).result()
            row = {"student": name, "bins": bin_count, "size_px": size_px, **count(name, bin_count, size_px), **found}
            rows.append(row)
            times = [
                "over 60 s" if row[key] is None else f"{row[key]:.1f}"
                for key in ("network_ms", "network_cpu_ms", "depth_ms", "depth_cpu_ms")
            ]
            print(
                f"{name:<28}{row['parameters'] / 1e6:>10.2f} M{row['gmac']:>9.2f}{times[0]:>12}{times[1]:>9}"
                f"{times[2]:>11}{times[3]:>9}{row['memory_mb'] or '-':>7}",
                flush=True,
            )
    machine["load_average_at_end"] = round(os.getloadavg()[0], 2)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

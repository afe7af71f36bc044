"""Measure each student's parameters, multiplications, time and memory for one image on a CPU.

    python benchmarks/students.py [--students NAME ...] [--head HEAD] [--threads N] [--out FILE.json]

Each student runs in a fresh process in the demo's setting (64 bins, 128x416) and the paper's (257 bins, 352x1216), with
one image, random weights and no flip average. `network` is from a normalized image to logits; `depth` adds
normalization, softmax, expectation and upsampling to the image's size, as `evaluate-student` does. Times are medians of
3 to 20 calls in at most 5 seconds, after one warm-up call; there is no time if the warm-up takes over a minute. `cpu`
is the processor time of a call, which other work on the machine changes less. GMAC counts the multiplications of
convolutions and matrix products (half of torch's FlopCounterMode). Memory is the peak above the memory before the
student was built, weights included (Linux only). `--students timm:NAME` measures a timm network,
`--head gaussian` a student of two outputs.
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
from common import cpu_model, memory_mb, reset_peak_memory
from torch.utils.flop_counter import FlopCounterMode

from pipeline.depth.bins import bin_edges
from pipeline.networks.predict import predict_depth_m
from pipeline.networks.reader import HEADS, Reader, outputs_of
from pipeline.networks.registry import STUDENTS, build_student

if TYPE_CHECKING:
    from collections.abc import Callable

SETTINGS = ((64, (128, 416)), (257, (352, 1216)))
CALLS = (3, 20)
CALLS_S = 5.0
TOO_LONG_S = 60.0


def count(name: str, head: str, bin_count: int, size_px: tuple[int, int]) -> dict:
    """Return parameters and multiplications, from a network on the meta device."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as flops:
        student = build_student(name, outputs_of(head, bin_count)).eval()
        student(torch.empty(1, 3, *size_px))
    parameters = sum(part.numel() for part in student.parameters())
    return {"parameters": parameters, "gmac": round(flops.get_total_flops() / 2e9, 3)}


def times_s(call: Callable[[], object]) -> list[tuple[float, float]]:
    """Return seconds and processor seconds of each call; empty if the first one takes too long."""
    begin = time.perf_counter()
    call()
    if time.perf_counter() - begin > TOO_LONG_S:
        return []
    times: list[tuple[float, float]] = []
    while len(times) < CALLS[0] or (len(times) < CALLS[1] and sum(elapsed for elapsed, _ in times) < CALLS_S):
        begin, cpu = time.perf_counter(), time.process_time()
        call()
        times.append((time.perf_counter() - begin, time.process_time() - cpu))
    return times


def measure(name: str, head: str, bin_count: int, size_px: tuple[int, int], threads: int) -> dict:
    """Return times and memory; call it in a fresh process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    edges_m = bin_edges(bin_count, 1e-3, 80).float()
    images = torch.rand(1, 3, *size_px)
    before_mb = reset_peak_memory() if Path("/proc/self/clear_refs").exists() else None
    student, reader = build_student(name, outputs_of(head, bin_count)).eval(), Reader(edges_m, head)
    with torch.inference_mode():
        network = times_s(lambda: student(images))
    depth = times_s(lambda: predict_depth_m(student, images, reader, flip_average=False)) if network else []
    row = {"calls": len(depth), "memory_mb": None if before_mb is None else round(memory_mb("VmHWM") - before_mb)}
    for part, times in (("network", network), ("depth", depth)):
        elapsed, cpu = zip(*times, strict=True) if times else ((), ())
        row[f"{part}_ms"] = round(1e3 * statistics.median(elapsed), 1) if times else None
        row[f"{part}_min_ms"] = round(1e3 * min(elapsed), 1) if times else None
        row[f"{part}_cpu_ms"] = round(1e3 * statistics.median(cpu), 1) if times else None
    return row


def main() -> None:
    """Measure, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=list(STUDENTS))
    parser.add_argument("--head", default="dpm", choices=[head for head in HEADS if head != "depth"])
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
                costs = pool.submit(measure, name, arguments.head, bin_count, size_px, arguments.threads).result()
            row = {
                "student": name,
                "head": arguments.head,
                "bins": bin_count,
                "size_px": size_px,
                **count(name, arguments.head, bin_count, size_px),
                **costs,
            }
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

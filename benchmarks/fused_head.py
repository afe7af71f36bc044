"""Compare `--fuse-head` with the ordinary last layer: time and peak memory of head and TIE-KD loss, both directions.

    python benchmarks/fused_head.py [--threads N] [--rounds 5] [--device cuda] [--out FILE.json]

Features of 128 channels (the paper's decoder) and of 32 (`lean`) at 352x704, 257 bins. Memory is the peak above
features and their gradient, in sizes of the float32 logits; on a CPU in a fresh process per row (Linux only).
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from common import RESULTS, machine, markdown, median_ratio, memory_mb, reset_peak_memory, write
from loss_gpu import Clock
from torch import nn

from pipeline.depth.bins import parse_bins
from pipeline.losses.base import LazyLogits
from pipeline.losses.tiekd import TieKdLoss

BINS, SIZE_PX, CHANNELS = 257, (352, 704), (128, 32)


def make(channels: int, device: torch.device) -> tuple[torch.Tensor, nn.Conv2d, torch.Tensor, TieKdLoss]:
    """Return features, a head, depth in metres and a loss."""
    torch.manual_seed(0)
    features = torch.randn(1, channels, *SIZE_PX, device=device, requires_grad=True)
    head = nn.Conv2d(channels, BINS, 1).to(device)
    depth_m = 3 + 60 * torch.rand(1, 1, *SIZE_PX, device=device)
    loss = TieKdLoss(parse_bins("kitti").edges())
    loss.use_kernel("auto", device)
    return features, head, depth_m, loss


def once(features: torch.Tensor, head: nn.Conv2d, depth_m: torch.Tensor, loss: TieKdLoss, *, fused: bool) -> None:
    """Forward and backward."""
    features.grad = None
    head.zero_grad(set_to_none=True)
    loss(LazyLogits.of(head, features) if fused else head(features), depth_m).backward()


def peak_mb(channels: int, threads: int, *, fused: bool) -> float:
    """Return the peak memory of a call on a CPU above that before it, in MB, without the gradient of the features."""
    torch.set_num_threads(threads)
    parts = make(channels, torch.device("cpu"))
    before = reset_peak_memory()
    once(*parts, fused=fused)
    return memory_mb("VmHWM") - before - parts[0].numel() * 4 / 2**20


def main() -> None:
    """Measure, print a table, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS / "fused_head.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    clock, logits_mb = Clock(device), BINS * SIZE_PX[0] * SIZE_PX[1] * 4 / 2**20
    rows = []
    for channels in CHANNELS:
        parts = make(channels, device)
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(arguments.rounds + 1):
            for fused, seconds in times.items():
                seconds.append(clock.seconds(lambda fused=fused, parts=parts: once(*parts, fused=fused)))
        peaks = {}
        for fused in times:
            if device.type == "cuda":
                before = torch.cuda.memory_allocated() + parts[0].numel() * 4
                peak = clock.peak_bytes(lambda fused=fused, parts=parts: once(*parts, fused=fused))
                peaks[fused] = ((peak or 0) - before) / 2**20
            else:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    peaks[fused] = pool.submit(peak_mb, channels, arguments.threads, fused=fused).result()
        rows += [
            {
                "channels": channels,
                "head": "fused" if fused else "ordinary",
                "ms": 1e3 * statistics.median(seconds[1:]),
                "time_ratio": median_ratio(seconds[1:], times[False][1:]),
                "peak_by_logits": peaks[fused] / logits_mb,
            }
            for fused, seconds in times.items()
        ]
    table = markdown(
        ["channels", "head", "ms", "time", "peak memory / logits"],
        [
            [
                f"{row['channels']}",
                row["head"],
                f"{row['ms']:.0f}",
                f"{row['time_ratio']:.2f}x",
                f"{row['peak_by_logits']:.2f}x",
            ]
            for row in rows
        ],
    )
    facts = {**machine(arguments.threads), "device": str(device), "logits_mb": round(logits_mb)}
    print(facts, "", table, sep="\n")
    write(arguments.out, table, {**facts, "rows": rows})


if __name__ == "__main__":
    main()

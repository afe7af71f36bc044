"""Compare the TIE-KD loss with plain PyTorch: time and peak memory of forward and backward.

    python benchmarks/loss.py [--threads N] [--compile] [--out FILE.json]
    python benchmarks/loss.py --device cuda [--out FILE.json]

257 bins over 1e-3 to 80 m, sigma 0.5 m, float32, for two crops of half and one of full resolution. `plain PyTorch`
follows the paper with whole tensors: differences of the Gaussian's CDF, log_softmax, kl_div, expected depth, SSIM by
convolution. Losses are called in turn, and ratios are per round. `--compile` adds torch.compile of the plain losses; it
needs a C++ compiler, and compilation is not timed. `response` is 1.5 SSIM + SI, which needs no teacher map.

Memory is measured in a fresh process per loss (Linux only): the peak above the memory before the logits were made, in
sizes of the logits. It includes logits and their gradient, so 2 is the minimum.

`--device cuda` measures on a GPU, with both kernels, torch.compile and bfloat16 logits; see `loss_gpu.py`. It writes
loss_gpu.json and loss_gpu.md.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import multiprocessing
import os
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import loss_gpu
import torch
import torch.nn.functional as F
from common import RESULTS, cpu_model, markdown, median_ratio, memory_mb, reset_peak_memory, write

from pipeline.cli.console import Console
from pipeline.depth.bins import parse_bins
from pipeline.depth.dpm import gaussian_dpm
from pipeline.losses.base import StoredMaps
from pipeline.losses.registry import build_loss
from pipeline.store.format.sparse import encode_sparse, weight_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SHAPES = ((2, 257, 176, 352), (1, 257, 352, 704))
SIGMA_M = 0.5
WEIGHT = 0.1
ROUNDS = 5
EDGES_M = parse_bins("kitti").edges().float()
CENTERS_M = ((EDGES_M[:-1] + EDGES_M[1:]) / 2).view(1, -1, 1, 1)


def plain_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean SSIM of depth (B, 1, H, W): 11x11 Gaussian window of sigma 1.5, C1 = 0.01^2, C2 = 0.03^2."""
    taps = torch.exp(-((torch.arange(11.0, device=x.device) - 5) ** 2) / (2 * 1.5**2))
    taps = taps / taps.sum()
    window = torch.outer(taps, taps)[None, None]
    mean_x, mean_y = F.conv2d(x, window, padding=5), F.conv2d(y, window, padding=5)
    var_x = F.conv2d(x * x, window, padding=5) - mean_x**2
    var_y = F.conv2d(y * y, window, padding=5) - mean_y**2
    cov = F.conv2d(x * y, window, padding=5) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similar.mean()


def plain_depth_and_kl(logits: Tensor, depth_m: Tensor) -> tuple[Tensor, Tensor]:
    """Return the expected depth (B, 1, H, W), and the mean KL from the Gaussian map of `depth_m`."""
    with torch.no_grad():
        cdf = torch.erf((EDGES_M.to(depth_m.device).view(1, -1, 1, 1) - depth_m) / (SIGMA_M * math.sqrt(2)))
        teacher = cdf[:, 1:] - cdf[:, :-1]
        teacher = teacher / teacher.sum(dim=1, keepdim=True)
    log_student = F.log_softmax(logits, dim=1, dtype=torch.float32)
    kl = F.kl_div(log_student, teacher, reduction="none").sum(dim=1).mean()
    return (log_student.exp() * CENTERS_M.to(depth_m.device)).sum(dim=1, keepdim=True), kl


def plain_tiekd(logits: Tensor, depth_m: Tensor) -> Tensor:
    """Return 10 (w KL + (1 - w) (1 - SSIM)), as in the paper."""
    student_m, kl = plain_depth_and_kl(logits, depth_m)
    return 10 * (WEIGHT * kl + (1 - WEIGHT) * (1 - plain_ssim(student_m, depth_m)))


def plain_response(logits: Tensor, depth_m: Tensor) -> Tensor:
    """Return 1.5 (1 - SSIM) + the scale-invariant log error."""
    student_m = (F.softmax(logits, dim=1, dtype=torch.float32) * CENTERS_M.to(depth_m.device)).sum(dim=1, keepdim=True)
    log_ratio = torch.log(student_m + 1e-3) - torch.log(depth_m + 1e-3)
    si = torch.sqrt(log_ratio.var() + 0.15 * log_ratio.mean() ** 2)
    return 1.5 * (1 - plain_ssim(student_m, depth_m)) + si


@cache
def stored_maps(shape: tuple[int, ...], bits: int = 8) -> StoredMaps:
    """Return the Gaussian maps of the depth of `make_inputs` in the format of a store."""
    _, depth_m = make_inputs(shape)
    maps = gaussian_dpm(depth_m, EDGES_M, SIGMA_M)
    encoded = [encode_sparse(dpm.numpy(), 0.01, bits)[0] for dpm in maps]
    planes = max(len(dpm.gap) for dpm in encoded)
    gap, weight = (
        torch.stack([F.pad(torch.from_numpy(dpm[part]), (0, 0, 0, 0, 0, planes - len(dpm[part]))) for dpm in encoded])
        for part in (0, 1)
    )
    tail = torch.stack([torch.from_numpy(dpm.tail) for dpm in encoded])
    return StoredMaps(gap, weight, tail, shape[1], torch.from_numpy(weight_table(bits)))


def plain_stored(logits: Tensor, depth_m: Tensor) -> Tensor:
    """Return `plain_tiekd` of stored maps, expanded to all bins first."""
    stored = stored_maps(tuple(logits.shape))
    with torch.no_grad():
        gap = stored.gap.long()
        index = torch.where(gap > 0, gap.cumsum(dim=1) - 1, stored.bins)
        count = (gap > 0).sum(dim=1, keepdim=True)
        rest = stored.table[stored.tail.long()][:, None] / (stored.bins - count)
        teacher = rest.repeat(1, stored.bins + 1, 1, 1).scatter_(1, index, stored.table[stored.weight.long()])
        teacher = teacher[:, :-1] / teacher[:, :-1].sum(dim=1, keepdim=True)
    log_student = F.log_softmax(logits, dim=1, dtype=torch.float32)
    kl = F.kl_div(log_student, teacher, reduction="none").sum(dim=1).mean()
    student_m = (log_student.exp() * CENTERS_M).sum(dim=1, keepdim=True)
    return 10 * (WEIGHT * kl + (1 - WEIGHT) * (1 - plain_ssim(student_m, depth_m)))


def our_stored(logits: Tensor, depth_m: Tensor) -> Tensor:
    """Return `tiekd` of stored maps."""
    return LOSSES["tiekd, ours"](logits, depth_m, stored_maps(tuple(logits.shape)))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tiekd, plain PyTorch": plain_tiekd,
    "tiekd, ours": build_loss("tiekd", parse_bins("kitti").edges(), sigma_m=SIGMA_M, weight=WEIGHT),
    "stored maps, plain PyTorch": plain_stored,
    "stored maps, ours": our_stored,
    "response, plain PyTorch": plain_response,
    "response, ours": build_loss("ssim+si", parse_bins("kitti").edges()),
}


def make_inputs(shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """Return logits with some mass near the depth, and a depth (B, 1, H, W) of slopes and steps."""
    batch, bins, height, width = shape
    torch.manual_seed(0)
    steps = F.interpolate(torch.rand(batch, 1, 6, 12), (height, width), mode="nearest")
    slopes = torch.linspace(60, 4, height).view(1, 1, -1, 1) + torch.linspace(0, 8, width)
    depth_m = slopes + 8 * steps
    logits = torch.empty(shape).normal_()
    near = (depth_m / 80 * bins).long().clamp(0, bins - 1)
    logits.scatter_add_(1, near, torch.full_like(depth_m, math.log(bins / 2)))
    return logits, depth_m


def one_pass(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, depth_m: Tensor) -> float:
    """Run forward and backward and return the loss; the gradient is in `logits.grad`."""
    logits.grad = None
    value = loss(logits, depth_m)
    value.backward()
    return float(value.detach())


def times_s(names: list[str], losses: dict[str, Callable], shape: tuple[int, int, int, int]) -> dict[str, list[float]]:
    """Return seconds by loss and round, after a warm-up round that checks that the losses agree."""
    logits, depth_m = make_inputs(shape)
    logits.requires_grad_()
    times: dict[str, list[float]] = {name: [] for name in names}
    values, gradients = {}, {}
    for name in names:
        values[name] = one_pass(losses[name], logits, depth_m)
        gradients[name] = logits.grad
    for name in names[1:]:
        difference = float((gradients[name] - gradients[names[0]]).norm() / gradients[names[0]].norm())
        # Plain SSIM in float32 is itself off by some percent.
        assert math.isclose(values[name], values[names[0]], rel_tol=0.02), values
        assert difference < 0.2, f"{name}: the gradient differs from that of {names[0]} by {difference:.2%}"
    gradients.clear()
    for _ in range(ROUNDS):
        for name in names:
            begin = time.perf_counter()
            one_pass(losses[name], logits, depth_m)
            times[name].append(time.perf_counter() - begin)
    return times


def peak_ratio(name: str, shape: tuple[int, int, int, int], threads: int) -> float | None:
    """Return the peak memory in sizes of the logits; call it in a fresh process."""
    torch.set_num_threads(threads)
    one_pass(
        LOSSES[name], *(part.requires_grad_(index == 0) for index, part in enumerate(make_inputs((1, 257, 32, 32))))
    )
    if not Path("/proc/self/clear_refs").exists():
        return None
    logits, depth_m = make_inputs(shape)
    logits.requires_grad_()
    if "stored" in name:
        stored_maps(shape)
    ctypes.CDLL(None).malloc_trim(0)  # memory freed above must not serve the loss for free
    before_mb = reset_peak_memory() - logits.numel() * 4 / 2**20
    one_pass(LOSSES[name], logits, depth_m)
    return round((memory_mb("VmHWM") - before_mb) * 2**20 / (logits.numel() * 4), 3)


def measure(shape: tuple[int, int, int, int], threads: int, *, compiled: bool) -> list[dict]:
    """Return a row for each loss at a shape."""
    rows = []
    losses = dict(LOSSES)
    if compiled:
        losses = {}
        for name, loss in LOSSES.items():
            losses[name] = loss
            if "plain" in name:
                losses[name.replace("plain PyTorch", "plain, torch.compile")] = torch.compile(loss)
    context = multiprocessing.get_context("spawn")
    for kind in ("tiekd", "stored maps", "response"):
        names = [name for name in losses if name.startswith(kind)]
        times = times_s(names, losses, shape)
        for name in names:
            memory = None
            if name in LOSSES:
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    memory = pool.submit(peak_ratio, name, shape, threads).result()
            rows.append(
                {
                    "logits": "x".join(map(str, shape)),
                    "loss": name,
                    "median_ms": round(1e3 * statistics.median(times[name]), 1),
                    "min_ms": round(1e3 * min(times[name]), 1),
                    "faster_than_plain": round(median_ratio(times[names[0]], times[name]), 2),
                    "peak_by_logits": memory,
                }
            )
    return rows


def table(rows: list[dict]) -> str:
    """Return the Markdown table."""
    body = []
    for row in rows:
        peak = "-" if row["peak_by_logits"] is None else f"{row['peak_by_logits']:.2f}x"
        speedup = f"{row['faster_than_plain']:.1f}x"
        body.append([row["logits"], row["loss"], f"{row['median_ms']:.0f}", speedup, peak])
    return markdown(["logits", "loss", "ms", "speedup", "peak memory / logits"], body)


def main() -> None:
    """Measure, print a table, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, help="benchmarks/results/loss.json, or loss_gpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    on_gpu = arguments.device != "cpu"
    if on_gpu and not torch.cuda.is_available():
        parser.error(f"--device {arguments.device}: torch {torch.__version__} finds no GPU; use --device cpu")
    out = arguments.out or RESULTS / ("loss_gpu.json" if on_gpu else "loss.json")
    machine = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "date": datetime.now().astimezone().date().isoformat(),
    }
    if on_gpu:
        plain = {
            "tiekd": plain_tiekd,
            "response": plain_response,
            "depth and KL": lambda logits, depth_m: sum(part.mean() for part in plain_depth_and_kl(logits, depth_m)),
        }
        rows, gpu = loss_gpu.run(torch.device(arguments.device), plain, make_inputs, SIGMA_M)
        machine, rounds, text = {**gpu, **machine}, loss_gpu.ROUNDS, loss_gpu.table(rows)
    else:
        rows = []
        with Console().task("losses", len(SHAPES), "shape") as task:
            for shape in SHAPES:
                rows += measure(shape, arguments.threads, compiled=arguments.compile)
                task.update()
        rounds, text = ROUNDS, table(rows)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"median of {rounds} rounds, losses in turn\n\n{text}", end="")
    write(out, text, {"machine": machine, "rounds": rounds, "rows": rows})


if __name__ == "__main__":
    main()

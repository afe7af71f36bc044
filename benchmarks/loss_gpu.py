"""Measure the losses on a GPU: `python benchmarks/loss.py --device cuda`.

Rows of each loss: plain PyTorch, torch.compile of it, ours in blocks, and ours in Triton. `depth and KL` is what our
kernels compute from logits, without SSIM. Times are from CUDA events around forward and backward, all rows in turn,
after rounds that warm up and compile. Memory is `max_memory_allocated` above the memory before the logits were made.

Any loss reads the logits forward, reads them again backward, and writes their gradient: three passes. `of bandwidth` is
the bandwidth of these passes as a fraction of a measured copy's.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch
from common import markdown, median_ratio

from pipeline.depth.bins import parse_bins
from pipeline.losses.blockwise import check_kernel, fused
from pipeline.losses.registry import build_loss
from pipeline.losses.targets import GaussianTarget

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Loss = Callable[[Tensor, Tensor], Tensor]

SHAPES = ((2, 257, 176, 352), (4, 257, 352, 704))
TYPES = (torch.float32, torch.bfloat16)
ROUNDS, WARM_UP_ROUNDS = 20, 3
COPIED_BYTES = 2**30
PASSES = 3


class Clock:
    """Measures time with CUDA events on a GPU and with `perf_counter` on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def seconds(self, call: Callable[[], object]) -> float:
        """Return the seconds until the device has finished a call."""
        if not self.cuda:
            begin = time.perf_counter()
            call()
            return time.perf_counter() - begin
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        call()
        events[1].record()
        torch.cuda.synchronize()
        return events[0].elapsed_time(events[1]) / 1e3

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        """Return the peak memory during a call; None on a CPU."""
        if not self.cuda:
            call()
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()


def ours(name: str, kernel: str, sigma_m: float) -> Loss:
    """Build a loss of the pipeline with a kernel."""
    loss = build_loss(name, parse_bins("kitti").edges(), sigma_m=sigma_m)
    assert loss.kernel == "blocks"  # setting the kernel below has an effect
    loss.kernel = kernel
    return loss


def depth_and_kl(kernel: str, sigma_m: float) -> Loss:
    """Build a loss of `fused` alone: mean depth plus mean KL."""
    edges_m = parse_bins("kitti").edges()

    def loss(logits: Tensor, depth_m: Tensor) -> Tensor:
        target = GaussianTarget(depth_m, edges_m, sigma_m, in_bins=False, centered=False)
        result = fused(logits, edges_m, target, kernel)
        return result.depth_m.mean() + result.kl_nats.mean()

    return loss


def losses(plain: dict[str, Loss], sigma_m: float, kernels: tuple[str, ...], *, compiled: bool) -> dict[str, Loss]:
    """Return losses by row name; `plain` has the PyTorch versions by kind."""
    rows: dict[str, Loss] = {}
    for kind, loss in plain.items():
        rows[f"{kind}, plain PyTorch"] = loss
        if compiled:
            rows[f"{kind}, plain, torch.compile"] = torch.compile(loss)
        for kernel in kernels:
            name = {"tiekd": "tiekd", "response": "ssim+si"}.get(kind)
            rows[f"{kind}, ours in {kernel}"] = (
                depth_and_kl(kernel, sigma_m) if name is None else ours(name, kernel, sigma_m)
            )
    return rows


def copy_bytes_per_s(device: torch.device, count: int = COPIED_BYTES) -> float:
    """Return the bandwidth of a copy; bytes read and written both count."""
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    clock = Clock(device)
    return 2 * count / statistics.median(clock.seconds(lambda: copy.copy_(source)) for _ in range(ROUNDS))


def one_pass(loss: Loss, logits: Tensor, depth_m: Tensor) -> None:
    """Run forward and backward without reading the value, which would synchronize the GPU."""
    logits.grad = None
    loss(logits, depth_m).backward()


def describe(logits: Tensor) -> str:
    """Return shape and dtype, such as `2x257x176x352 float32`."""
    return f"{'x'.join(map(str, logits.shape))} {str(logits.dtype).removeprefix('torch.')}"


def measure(
    named: dict[str, Loss], logits: Tensor, depth_m: Tensor, copied_bytes_per_s: float, rounds: int = ROUNDS
) -> list[dict]:
    """Return a row for each loss at these logits. All losses of a kind must give the same gradient."""
    clock = Clock(logits.device)
    logits.requires_grad_()
    size = logits.numel() * logits.element_size()
    peaks, gradients = {}, {}
    for name, loss in named.items():
        print(f"warming up {name}, {describe(logits)}", flush=True)
        for _ in range(WARM_UP_ROUNDS):
            one_pass(loss, logits, depth_m)
        first = gradients.setdefault(name.split(",")[0], logits.grad.float().cpu())
        difference = float((logits.grad.float().cpu() - first).norm() / first.norm())
        # Plain SSIM in float32 is itself off by some percent.
        assert difference < 0.2, f"{name}: the gradient differs from plain PyTorch's by {difference:.2%}"
        logits.grad = None
        before = torch.cuda.memory_allocated() - size if clock.cuda else 0
        peak = clock.peak_bytes(lambda loss=loss: one_pass(loss, logits, depth_m))
        peaks[name] = None if peak is None else round((peak - before) / size, 3)
    times: dict[str, list[float]] = {name: [] for name in named}
    for _ in range(rounds):
        for name, loss in named.items():
            times[name].append(clock.seconds(lambda loss=loss: one_pass(loss, logits, depth_m)))
    rows = []
    for name, times_s in times.items():
        plain_s = times[f"{name.split(',')[0]}, plain PyTorch"]
        median_s = statistics.median(times_s)
        rows.append(
            {
                "logits": describe(logits),
                "loss": name,
                "median_ms": round(1e3 * median_s, 3),
                "min_ms": round(1e3 * min(times_s), 3),
                "faster_than_plain": round(median_ratio(plain_s, times_s), 2),
                "peak_by_logits": peaks[name],
                "of_bandwidth": round(PASSES * size / median_s / copied_bytes_per_s, 3),
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    """Return the Markdown table."""
    body = []
    for row in rows:
        peak = "-" if row["peak_by_logits"] is None else f"{row['peak_by_logits']:.2f}x"
        cells = [row["logits"], row["loss"], f"{row['median_ms']:.2f}", f"{row['faster_than_plain']:.1f}x", peak]
        body.append([*cells, f"{100 * row['of_bandwidth']:.0f} %"])
    return markdown(["logits", "loss", "ms", "speedup", "peak memory / logits", "of bandwidth"], body)


def run(
    device: torch.device,
    plain: dict[str, Loss],
    make_inputs: Callable[[tuple[int, int, int, int]], tuple[Tensor, Tensor]],
    sigma_m: float,
    shapes: tuple[tuple[int, int, int, int], ...] = SHAPES,
    *,
    compiled: bool = True,
    rounds: int = ROUNDS,
    copied_bytes: int = COPIED_BYTES,
) -> tuple[list[dict], dict]:
    """Return rows of every loss, shape and type, and facts about the device. Skips Triton where it cannot run."""
    kernels = ("blocks", "triton")
    try:
        check_kernel("triton", device)
    except ValueError as error:
        kernels = ("blocks",)
        print(f"skipping Triton: {error}")
    bandwidth = copy_bytes_per_s(device, copied_bytes)
    named = losses(plain, sigma_m, kernels, compiled=compiled)
    rows = []
    for shape in shapes:
        for dtype in TYPES:
            logits, depth_m = (part.to(device) for part in make_inputs(shape))
            measured = measure(named, logits.to(dtype), depth_m, bandwidth, rounds)
            print(table(measured), flush=True)
            rows += measured
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return rows, {"gpu": name, "copy_gb_per_s": round(bandwidth / 1e9, 1)}

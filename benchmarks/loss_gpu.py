"""The losses on a GPU: `python benchmarks/loss.py --device cuda`.

Of each loss: plain PyTorch, torch.compile of it, ours in blocks, and ours in Triton. `depth and KL` is what our kernels
compute from logits, without SSIM. Times are of CUDA events around forward and backward, all rows in turn, after rounds
that warm up and compile. Memory is `max_memory_allocated`, less what was held before the logits were made.

Whatever is done with logits has to read them forward, and to read them again and write their gradient backward: three
passes. `of bandwidth` is the share of a measured copy's bandwidth that those would take in the time of the row.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch

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
    """Seconds on a GPU between two moments, by its own events; on a CPU by the processor's clock."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def seconds(self, call: Callable[[], object]) -> float:
        """How long a call takes, until the device has done it."""
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
        """The most memory that is held during a call; None on a CPU, which does not tell."""
        if not self.cuda:
            call()
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()


def ours(name: str, kernel: str, sigma_m: float) -> Loss:
    """A loss of ours, on that kernel."""
    loss = build_loss(name, parse_bins("kitti").edges(), sigma_m)
    assert loss.kernel == "blocks"  # else nobody would read what is set here
    loss.kernel = kernel
    return loss


def depth_and_kl(kernel: str, sigma_m: float) -> Loss:
    """Of `fused` alone: a sum of all depths and divergences."""
    edges_m = parse_bins("kitti").edges()

    def loss(logits: Tensor, depth_m: Tensor) -> Tensor:
        target = GaussianTarget(depth_m, edges_m, sigma_m, in_bins=False, centred=False)
        found = fused(logits, edges_m, target, kernel)
        return found.depth_m.mean() + found.kl_nats.mean()

    return loss


def losses(plain: dict[str, Loss], sigma_m: float, kernels: tuple[str, ...], *, compiled: bool) -> dict[str, Loss]:
    """Rows by name; `plain` are those of tiekd, response and depth and KL."""
    found: dict[str, Loss] = {}
    for kind, loss in plain.items():
        found[f"{kind}, plain PyTorch"] = loss
        if compiled:
            found[f"{kind}, plain, torch.compile"] = torch.compile(loss)
        for kernel in kernels:
            name = {"tiekd": "tiekd", "response": "ssim+si"}.get(kind)
            found[f"{kind}, ours in {kernel}"] = (
                depth_and_kl(kernel, sigma_m) if name is None else ours(name, kernel, sigma_m)
            )
    return found


def copy_bytes_per_s(device: torch.device, count: int = COPIED_BYTES) -> float:
    """Bandwidth of a copy, counting what is read and what is written."""
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    clock = Clock(device)
    return 2 * count / statistics.median(clock.seconds(lambda: copy.copy_(source)) for _ in range(ROUNDS))


def one_pass(loss: Loss, logits: Tensor, depth_m: Tensor) -> None:
    """Forward and backward, with no look at the value: it would wait for the GPU."""
    logits.grad = None
    loss(logits, depth_m).backward()


def measure(
    named: dict[str, Loss], logits: Tensor, depth_m: Tensor, copied_bytes_per_s: float, rounds: int = ROUNDS
) -> list[dict]:
    """A row for each loss at these logits, of which all must give the same gradient."""
    clock = Clock(logits.device)
    logits.requires_grad_()
    size = logits.numel() * logits.element_size()
    peaks, gradients = {}, {}
    for name, loss in named.items():
        for _ in range(WARM_UP_ROUNDS):
            one_pass(loss, logits, depth_m)
        first = gradients.setdefault(name.split(",")[0], logits.grad.float().cpu())
        apart = float((logits.grad.float().cpu() - first).norm() / first.norm())
        # SSIM in float32, as one writes it, is itself right to some percent only.
        assert apart < 0.2, f"{name}: the gradient is {apart:.2%} from plain PyTorch's"
        logits.grad = None
        before = torch.cuda.memory_allocated() - size if clock.cuda else 0
        peak = clock.peak_bytes(lambda loss=loss: one_pass(loss, logits, depth_m))
        peaks[name] = None if peak is None else round((peak - before) / size, 3)
    times: dict[str, list[float]] = {name: [] for name in named}
    for _ in range(rounds):
        for name, loss in named.items():
            times[name].append(clock.seconds(lambda loss=loss: one_pass(loss, logits, depth_m)))
    rows = []
    for name, found_s in times.items():
        plain_s = times[f"{name.split(',')[0]}, plain PyTorch"]
        middle_s = statistics.median(found_s)
        rows.append(
            {
                "logits": f"{'x'.join(map(str, logits.shape))} {str(logits.dtype).removeprefix('torch.')}",
                "loss": name,
                "median_ms": round(1e3 * middle_s, 3),
                "min_ms": round(1e3 * min(found_s), 3),
                "faster_than_plain": round(statistics.median(a / b for a, b in zip(plain_s, found_s, strict=True)), 2),
                "peak_by_logits": peaks[name],
                "of_bandwidth": round(PASSES * size / middle_s / copied_bytes_per_s, 3),
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| logits | loss | ms | faster | peak memory, by the logits | of bandwidth |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        peak = "-" if row["peak_by_logits"] is None else f"{row['peak_by_logits']:.2f}x"
        lines.append(
            f"| {row['logits']} | {row['loss']} | {row['median_ms']:.2f} | {row['faster_than_plain']:.1f}x | {peak} "
            f"| {100 * row['of_bandwidth']:.0f} % |"
        )
    return "\n".join(lines) + "\n"


def run(
    device: torch.device,
    plain: dict[str, Loss],
    made: Callable[[tuple[int, int, int, int]], tuple[Tensor, Tensor]],
    sigma_m: float,
    shapes: tuple[tuple[int, int, int, int], ...] = SHAPES,
    *,
    compiled: bool = True,
    rounds: int = ROUNDS,
    copied_bytes: int = COPIED_BYTES,
) -> tuple[list[dict], dict]:
    """Rows of every loss at every shape and type, and what the device is. Says why, where Triton is left out."""
    kernels = ("blocks", "triton")
    try:
        check_kernel("triton", device)
    except ValueError as error:
        kernels = ("blocks",)
        print(f"no rows of Triton: {error}")
    bandwidth = copy_bytes_per_s(device, copied_bytes)
    named = losses(plain, sigma_m, kernels, compiled=compiled)
    rows = []
    for shape in shapes:
        for dtype in TYPES:
            logits, depth_m = (part.to(device) for part in made(shape))
            rows += measure(named, logits.to(dtype), depth_m, bandwidth, rounds)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return rows, {"gpu": name, "copy_gb_per_s": round(bandwidth / 1e9, 1)}

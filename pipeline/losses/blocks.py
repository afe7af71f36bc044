"""Depth of logits and KL divergence from target maps for a block of pixels at a time, however the logits are made.

In a plain implementation softmax, its logarithm, the target map and their product are each as large as the logits, and
memory traffic dominates the time. Here a few hundred pixels are computed in a buffer that fits the CPU's cache. Forward
saves five numbers per pixel; backward recomputes the softmax.

Shape legend: B batch, K bins, h w pixels, P = h w, n pixels of a block, W bins of a window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from .targets import AnyTarget

BLOCK_VALUES = 2**17
"""Logits of a block per thread: 512 KB in float32, which fits the cache of a core."""
GPU_BLOCK_VALUES = 2**26
"""Logits of a block on a GPU, where a block must be worth a dozen kernel launches."""


def work_type(logits: Tensor) -> torch.dtype:
    """Return the type to compute in: float64 for float64 logits, else float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def blocks_of(shape: tuple[int, int, int, int], device: torch.device) -> list[tuple[int, int, int]]:
    """Return image, first pixel and end of each block; they depend on the shape and the number of threads."""
    batch, bins, height, width = shape
    values = BLOCK_VALUES * torch.get_num_threads() if device.type == "cpu" else GPU_BLOCK_VALUES
    pixels = max(values // bins // 16 * 16, 16)
    begins = range(0, height * width, pixels)
    return [(image, begin, min(begin + pixels, height * width)) for image in range(batch) for begin in begins]


class Blocks(NamedTuple):
    """What both directions need: sizes, and how to get the logits of a block and give back their gradient."""

    shape: tuple[int, int, int, int]
    """(B, K, h, w)."""
    dtype: torch.dtype
    device: torch.device
    blocks: list[tuple[int, int, int]]
    fill: Callable[[Tensor, int, int, int], object]
    """Write the logits (K, n) of an image's pixels from begin to end into a buffer."""

    def buffer(self) -> Tensor:
        """Return an empty buffer for the largest block."""
        pixels = max((end - begin for _, begin, end in self.blocks), default=0)
        return torch.empty(self.shape[1] * pixels, dtype=self.dtype, device=self.device)


def forward_blocks(blocks: Blocks, levels: Tensor, target: AnyTarget | None) -> tuple[Tensor, ...]:
    """Return largest logit, 1 / the sum of exponentials, mean of the levels, KL and mass of each pixel, all (B, P).

    KL and mass are empty without a target.
    """
    batch, bins, height, width = blocks.shape
    target_pixels = 0 if target is None else height * width
    largest, scale, mean, kl_nats, mass = (
        torch.empty(batch, pixels, dtype=blocks.dtype, device=blocks.device)
        for pixels in (height * width, height * width, height * width, target_pixels, target_pixels)
    )
    buffer = blocks.buffer()
    for image, begin, end in blocks.blocks:
        work = buffer[: bins * (end - begin)].view(bins, -1)
        here = (image, slice(begin, end))
        blocks.fill(work, image, begin, end)
        work.sub_(torch.amax(work, dim=0, out=largest[here]))
        if target is not None:
            maps, indices = target.block(image, begin, end)
            cross = (maps * (work if indices is None else work.gather(0, indices))).sum(dim=0)
            entropy = torch.xlogy(maps, maps).sum(dim=0)
            torch.sum(maps, dim=0, out=mass[here])
        total = work.exp_().sum(dim=0)
        torch.reciprocal(total, out=scale[here])
        # Not a matmul: TF32, if the user enabled it, keeps only three digits
        torch.mul(work.mul_(levels).sum(dim=0), scale[here], out=mean[here])
        if target is not None:
            torch.addcmul(entropy - cross, mass[here], total.log_(), out=kl_nats[here])
    return largest, scale, mean, kl_nats, mass


def backward_blocks(
    blocks: Blocks,
    put: Callable[[Tensor, int, int, int], object],
    target: AnyTarget | None,
    saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    of_mean: Tensor | None,
    of_kl: Tensor | None,
) -> None:
    """Call `put` with the gradient (K, n) of each block of logits, from those of mean and KL.

    `saved` are levels (K, 1), and largest, scale, mean and mass (B, P) as `forward_blocks` returns them.
    """
    levels, largest, scale, mean, mass = saved
    batch, bins = blocks.shape[:2]
    # d mean / d logit = S (c - mean), d KL / d logit = mass S - T: the gradient is S (offset + slope c) - of_kl T
    slope = offset = torch.zeros_like(scale)
    if of_mean is not None:
        slope = of_mean.reshape(batch, -1) * scale
        offset = -slope * mean.view(batch, -1)
    if of_kl is not None:
        of_kl = of_kl.reshape(batch, -1)
        offset = torch.addcmul(offset, of_kl * mass, scale)
    buffer, factors = blocks.buffer(), blocks.buffer()
    for image, begin, end in blocks.blocks:
        work, factor = (values[: bins * (end - begin)].view(bins, -1) for values in (buffer, factors))
        blocks.fill(work, image, begin, end)
        work.sub_(largest[image, begin:end]).exp_()
        torch.addcmul(offset[image, begin:end], slope[image, begin:end], levels, out=factor)
        work.mul_(factor)
        if of_kl is not None:
            assert target is not None
            maps, indices = target.block(image, begin, end)
            maps = maps * of_kl[image, begin:end]
            if indices is None:
                work.sub_(maps)
            else:
                work.scatter_add_(0, indices, maps.neg_())
        put(work, image, begin, end)


def results_of(
    ctx: Any,  # noqa: ANN401 - autograd's
    found: tuple[Tensor, ...],
    shape: tuple[int, int, int, int],
    target: AnyTarget | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return what `forward_blocks` found as (B, 1, h, w), and keep the target for backward."""
    ctx.target = target
    ctx.set_materialize_grads(False)
    mean, kl_nats, mass = (values.view(-1, 1, *shape[2:]) if values.numel() else values for values in found[2:])
    if target is None:
        return mean, None, None
    ctx.mark_non_differentiable(mass)
    return mean, kl_nats, mass

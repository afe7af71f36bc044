"""`fused` on a GPU: one Triton kernel forward and one backward.

Memory traffic: forward reads each logit once; backward reads it once and writes its gradient once: 4 and 8 bytes per
logit in float32, 2 and 4 in bfloat16. Gaussian maps add 28 bytes per pixel in each direction: at K = 257, 2.7 % and
1.4 % in float32, 5.4 % and 2.7 % in bfloat16. A given map is also read once in each direction; the planes of a stored
map once for each tile of bins, mostly from cache.

Sums have a fixed order and tiles are not autotuned, so the same logits give the same bits.

Shape legend: B batch, K bins, h w pixels, P = h w.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from .kernels import OfPixels, backward, forward
from .maps import GAUSSIAN, GIVEN, NONE, STORED, Strided, arguments

if TYPE_CHECKING:
    from ..targets import GaussianTarget, GivenTarget, StoredTarget

WARP_BYTES, MOST_BINS = 512, 1024
"""Bytes of the pixels of one bin, and largest number of bins of one pixel, in a tile."""


class _FusedTriton(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's
        logits: Tensor,
        levels: Tensor,
        target: GaussianTarget | GivenTarget | StoredTarget | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        batch, _, height, width = logits.shape
        kind, of, maps, nearest = arguments(target)
        asked = {NONE.value: 3, GIVEN.value: 5, STORED.value: 5, GAUSSIAN.value: 6}[kind]
        out = OfPixels(*(torch.empty(batch, height * width, device=logits.device) for _ in range(asked)))
        levels = levels.to(logits.device, torch.float32, non_blocking=True)
        _launch(forward, logits, (levels, of, maps, nearest, out), kind)
        ctx.target = target
        ctx.set_materialize_grads(False)
        mean = out.mean.view(batch, 1, height, width)
        if out.kl_nats is None or out.mass is None:
            ctx.save_for_backward(logits, levels, out.largest, out.scale, mean)
            return mean, None, None
        kl_nats, mass = out.kl_nats.view_as(mean), out.mass.view_as(mean)
        ctx.save_for_backward(logits, levels, out.largest, out.scale, mean, None, mass, out.norm)
        ctx.mark_non_differentiable(mass)
        return mean, kl_nats, mass

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401 - as above
        of_mean: Tensor | None,
        of_kl: Tensor | None,
        _: Tensor | None,
    ) -> tuple[Tensor | None, None, None]:
        if of_mean is None and of_kl is None:
            return None, None, None
        logits, levels, *of_pixels = ctx.saved_tensors
        kind, of, maps, nearest = arguments(None if of_kl is None else ctx.target)
        gradient = torch.empty_like(logits)
        flow = (None if one is None else one.contiguous() for one in (of_mean, of_kl))
        parts = (_strided(gradient), levels, of, maps, nearest, OfPixels(*of_pixels), *flow)
        _launch(backward, logits, parts, kind)
        return gradient, None, None


def fused_triton(
    logits: Tensor, levels: Tensor, target: GaussianTarget | GivenTarget | StoredTarget | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return mean of the levels (K,), KL and mass of the maps, (B, 1, h, w) float32, as in `Fused`.

    Args:
        logits: (B, K, h, w) float32, float16 or bfloat16 with a constant stride between pixels, on a GPU, or on a CPU
            with TRITON_INTERPRET=1.
        levels: (K,)
        target: maps, on the same device.
    """
    found: tuple[Tensor, Tensor | None, Tensor | None] = _FusedTriton.apply(logits, levels, target)  # type: ignore[no-untyped-call]  # torch's
    return found


def _strided(image: Tensor) -> Strided:
    """Return (B, K, h, w), with a constant stride between pixels, as `Strided`."""
    flat = image.view(*image.shape[:2], -1)
    return Strided(flat, *flat.stride())


def _sizes(logits: Tensor, kind: int, *, forward: bool) -> tuple[int, int, int]:
    """Return the bins of a tile outside and inside the reach of the Gaussians, and its pixels.

    The largest sizes without register spilling. If the pixels of a bin are contiguous, each thread has 16 bytes of them
    and sums over bins alone. If the bins of a pixel are contiguous (channels_last), forward has all in one tile, and
    threads reduce once.
    """
    if logits.stride(1) != 1:
        block_p = WARP_BYTES // logits.element_size()
        return (
            (512 if kind == GIVEN.value else 1024 if kind == STORED.value else 2048) // block_p,
            512 // block_p,
            block_p,
        )
    if not forward and kind == GAUSSIAN.value:
        return 128, 32, 8
    block_k = min(triton.next_power_of_2(logits.shape[1]), MOST_BINS)
    return block_k, block_k, max((512 if kind == GAUSSIAN.value else 2048) // block_k, 1)


def _launch(kernel: Any, logits: Tensor, parts: tuple[Any, ...], kind: int) -> None:  # noqa: ANN401 - Triton's
    batch, bins, height, width = logits.shape
    block_k, window_k, block_p = _sizes(logits, kind, forward=kernel is forward)
    grid = (triton.cdiv(height * width, block_p), batch)
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]  # torch's; nothing for a CPU
        kernel[grid](
            _strided(logits),
            *parts,
            height * width,
            bins=bins,
            kind=kind,
            block_k=block_k,
            window_k=window_k,
            block_p=block_p,
            num_warps=1,
        )

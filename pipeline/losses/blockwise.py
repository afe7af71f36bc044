"""Depth of logits and KL divergence from target maps, computed for a block of pixels at a time.

In a plain implementation softmax, its logarithm, the target map and their product are each as large as the logits, and
memory traffic dominates the time. Here a few hundred pixels are copied into a buffer that fits the CPU's cache. Forward
saves four numbers per pixel; backward recomputes the softmax and allocates only the gradient of the logits.

Shape legend: B batch, K bins, h w pixels, P = h w, n pixels of a block, W bins of a window.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..depth.bins import bin_centers
from ..errors import MissingDependencyError, PipelineError
from .base import DepthLoss

if TYPE_CHECKING:
    from .targets import AnyTarget

BLOCK_VALUES = 2**17
"""Logits of a block per thread: 512 KB in float32, which fits the cache of a core."""
GPU_BLOCK_VALUES = 2**26
"""Logits of a block on a GPU, where a block must be worth a dozen kernel launches."""

KERNELS = ("blocks", "triton")
"""Implementations: a dozen torch operations per block, on any device; or one Triton kernel forward and one backward."""
AUTO = "auto"
"""`triton` on a GPU where it is installed, otherwise `blocks`."""


class Fused(NamedTuple):
    """Results for each pixel, all (B, 1, h, w)."""

    depth_m: Tensor
    """mean of the softmax"""
    kl_nats: Tensor | None
    """KL(T || S); 0 where the target has no map; None without a target"""
    mass: Tensor | None
    """sum of the target map: 1, or 0 where it has no map; without gradient"""


def fused(
    logits: Tensor,
    bin_edges_m: Tensor,
    target: AnyTarget | None = None,
    kernel: str = "blocks",
) -> Fused:
    """Return the depth of logits and their KL divergence from target maps.

    Args:
        logits: (B, K, h, w) in any memory format. Half precision is computed in float32; float64 stays.
        bin_edges_m: (K + 1,) ascending.
        target: maps of the size of the logits.
        kernel: one of KERNELS. They differ in rounding, and where a map is 0 and the logit -inf: `blocks` gives a KL of
            NaN, `triton` ignores the bin.

    Returns:
        float32 (B, 1, h, w), or float64 for float64 logits. The gradient has the type and memory format of the logits.
        Double backward is not supported.

    Raises PipelineError if the kernel cannot run (`check_kernel`).
    """
    check_kernel(kernel, logits.device, logits.dtype)
    if logits.stride(2) != logits.shape[3] * logits.stride(3):
        logits = logits.contiguous()  # a crop, whose pixels have no constant stride
    if kernel == "triton":
        from .triton.autograd import fused_triton

        return Fused(*fused_triton(logits, bin_centers(bin_edges_m), target))
    results = _Fused.apply(logits, bin_centers(bin_edges_m), target)  # type: ignore[no-untyped-call]  # torch's
    return Fused(*results)


def check_kernel(kernel: str, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """Raise PipelineError unless `fused` can run this kernel on logits of this device and type."""
    if kernel not in KERNELS:
        raise PipelineError(f"`loss_kernel={kernel}`: expected one of {', '.join(KERNELS)}")
    if kernel == "blocks":
        return
    if find_spec("triton") is None:
        raise MissingDependencyError("triton", "triton", "kernel 'triton'")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise PipelineError(f"`loss_kernel=triton` needs a CUDA device, got {device}: use `loss_kernel=blocks`")
    if dtype == torch.float64:
        raise PipelineError(
            "`loss_kernel=triton` does not support float64 logits: use `loss_kernel=blocks`, or float32"
        )


class FusedLoss(DepthLoss):
    """Base class of losses that use `fused`."""

    kernel = "blocks"

    def use_kernel(self, kernel: str, device: torch.device) -> None:
        """As `DepthLoss.use_kernel`, with any of KERNELS, or AUTO."""
        if kernel == AUTO:
            kernel = "triton" if device.type == "cuda" and find_spec("triton") is not None else "blocks"
        check_kernel(kernel, device)
        self.kernel = kernel


def _work_type(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _blocks(logits: Tensor) -> list[tuple[int, int, int]]:
    """Return image, first pixel and end of each block; they depend on the shape and the number of threads."""
    batch, bins, height, width = logits.shape
    values = BLOCK_VALUES * torch.get_num_threads() if logits.device.type == "cpu" else GPU_BLOCK_VALUES
    pixels = max(values // bins // 16 * 16, 16)
    begins = range(0, height * width, pixels)
    return [(image, begin, min(begin + pixels, height * width)) for image in range(batch) for begin in begins]


def _buffer(logits: Tensor, blocks: list[tuple[int, int, int]]) -> Tensor:
    pixels = max((end - begin for _, begin, end in blocks), default=0)
    return torch.empty(logits.shape[1] * pixels, dtype=_work_type(logits), device=logits.device)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's
        logits: Tensor,
        centers_m: Tensor,
        target: AnyTarget | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        batch, bins, height, width = logits.shape
        dtype = _work_type(logits)
        flat = logits.flatten(2)
        centers = centers_m.to(logits.device, dtype, non_blocking=True)[:, None]
        # For each pixel: the largest logit, 1 / the sum of exponentials, and the results
        target_pixels = 0 if target is None else height * width
        largest, scale, depth_m, kl_nats, mass = (
            torch.empty(batch, pixels, dtype=dtype, device=logits.device)
            for pixels in (height * width, height * width, height * width, target_pixels, target_pixels)
        )
        blocks = _blocks(logits)
        buffer = _buffer(logits, blocks)
        for image, begin, end in blocks:
            work = buffer[: bins * (end - begin)].view(bins, -1)
            here = (image, slice(begin, end))
            work.copy_(flat[image, :, begin:end])
            work.sub_(torch.amax(work, dim=0, out=largest[here]))
            if target is not None:
                maps, indices = target.block(image, begin, end)
                cross = (maps * (work if indices is None else work.gather(0, indices))).sum(dim=0)
                entropy = torch.xlogy(maps, maps).sum(dim=0)
                torch.sum(maps, dim=0, out=mass[here])
            total = work.exp_().sum(dim=0)
            torch.reciprocal(total, out=scale[here])
            # Not a matmul: TF32, if the user enabled it, keeps only three digits
            torch.mul(work.mul_(centers).sum(dim=0), scale[here], out=depth_m[here])
            if target is not None:
                torch.addcmul(entropy - cross, mass[here], total.log_(), out=kl_nats[here])
        ctx.target = target
        ctx.set_materialize_grads(False)
        depth_m = depth_m.view(batch, 1, height, width)
        ctx.save_for_backward(logits, centers, largest, scale, depth_m, mass)
        if target is None:
            return depth_m, None, None
        kl_nats, mass_of_maps = (values.view(batch, 1, height, width) for values in (kl_nats, mass))
        ctx.mark_non_differentiable(mass_of_maps)
        return depth_m, kl_nats, mass_of_maps

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401 - as above
        of_depth: Tensor | None,
        of_kl: Tensor | None,
        _: Tensor | None,
    ) -> tuple[Tensor | None, None, None]:
        logits, centers, largest, scale, depth_m, mass = ctx.saved_tensors
        batch, bins, height, width = logits.shape
        if of_depth is None and of_kl is None:
            return None, None, None
        # d depth / d logit = S (c - depth), d KL / d logit = mass S - T: the gradient is S (offset + slope c) - of_kl T
        slope = offset = torch.zeros_like(scale)
        if of_depth is not None:
            slope = of_depth.reshape(batch, -1) * scale
            offset = -slope * depth_m.view(batch, -1)
        if of_kl is not None:
            of_kl = of_kl.reshape(batch, -1)
            offset = torch.addcmul(offset, of_kl * mass, scale)
        gradient = torch.empty_like(logits)
        flat, flat_gradient = logits.flatten(2), gradient.view(batch, bins, height * width)
        blocks = _blocks(logits)
        buffer, factors = _buffer(logits, blocks), _buffer(logits, blocks)
        for image, begin, end in blocks:
            work, factor = (values[: bins * (end - begin)].view(bins, -1) for values in (buffer, factors))
            work.copy_(flat[image, :, begin:end])
            work.sub_(largest[image, begin:end]).exp_()
            torch.addcmul(offset[image, begin:end], slope[image, begin:end], centers, out=factor)
            work.mul_(factor)
            if of_kl is not None:
                maps, indices = ctx.target.block(image, begin, end)
                maps = maps * of_kl[image, begin:end]
                if indices is None:
                    work.sub_(maps)
                else:
                    work.scatter_add_(0, indices, maps.neg_())
            flat_gradient[image, :, begin:end].copy_(work)
        return gradient, None, None

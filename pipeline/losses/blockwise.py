"""Depth of logits and KL divergence from target maps: `fused` chooses how to compute them.

`blocks` has the computation. Of whole logits, backward allocates only their gradient.

Shape legend: B batch, K bins, h w pixels, P = h w, n pixels of a block, W bins of a window.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..depth.readout import DEFAULT, depth_of_mean, levels_of
from ..errors import MissingDependencyError, PipelineError
from .base import DepthLoss, LazyLogits
from .blocks import Blocks, backward_blocks, blocks_of, forward_blocks, results_of, work_type
from .fused_head import fused_head

if TYPE_CHECKING:
    from .base import AnyLogits
    from .targets import AnyTarget

KERNELS = ("blocks", "triton")
"""Implementations: a dozen torch operations per block, on any device; or one Triton kernel forward and one backward."""
AUTO = "auto"
"""`triton` on a GPU where it is installed, otherwise `blocks`."""


class Fused(NamedTuple):
    """Results for each pixel, all (B, 1, h, w)."""

    depth_m: Tensor
    """depth of the softmax, as `readout` reads it"""
    kl_nats: Tensor | None
    """KL(T || S); 0 where the target has no map; None without a target"""
    mass: Tensor | None
    """sum of the target map: 1, or 0 where it has no map; without gradient"""


def fused(
    logits: Tensor | LazyLogits,
    bin_edges_m: Tensor,
    target: AnyTarget | None = None,
    kernel: str = "blocks",
    readout: str = DEFAULT,
) -> Fused:
    """Return the depth of logits and their KL divergence from target maps.

    Args:
        logits: (B, K, h, w) in any memory format. Half precision is computed in float32; float64 stays. Lazy logits are
            computed here block by block, whatever the kernel.
        bin_edges_m: (K + 1,) ascending.
        target: maps of the size of the logits.
        readout: how to read the depth, one of `readout.TRAINABLE`.
        kernel: one of KERNELS. They differ in rounding, and where a map is 0 and the logit -inf: `blocks` gives a KL of
            NaN, `triton` ignores the bin.

    Returns:
        float32 (B, 1, h, w), or float64 for float64 logits. The gradient has the type and memory format of the logits.
        Double backward is not supported.

    Raises PipelineError if the kernel cannot run (`check_kernel`).
    """
    check_kernel(kernel, logits.device, logits.dtype)
    mean, kl_nats, mass = _mean_level(logits, levels_of(bin_edges_m, readout), target, kernel)
    return Fused(depth_of_mean(mean, readout), kl_nats, mass)


def _mean_level(
    logits: Tensor | LazyLogits, levels: Tensor, target: AnyTarget | None, kernel: str
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the mean of levels (K,) under each map, KL and mass, as in `Fused`."""
    if isinstance(logits, LazyLogits):
        return fused_head(logits, levels, target)
    if logits.stride(2) != logits.shape[3] * logits.stride(3):
        logits = logits.contiguous()  # a crop, whose pixels have no constant stride
    if kernel == "triton":
        from .triton.autograd import fused_triton

        return fused_triton(logits, levels, target)
    results: tuple[Tensor, Tensor | None, Tensor | None] = _Fused.apply(logits, levels, target)  # type: ignore[no-untyped-call]  # torch's
    return results


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
    """Base class of losses that use `fused`. Their logits may be lazy (`base.LazyLogits`)."""

    kernel = "blocks"

    @property
    def takes_lazy_logits(self) -> bool:
        """Whether this loss computes logits block by block."""
        return True

    def use_kernel(self, kernel: str, device: torch.device) -> None:
        """As `DepthLoss.use_kernel`, with any of KERNELS, or AUTO."""
        if kernel == AUTO:
            kernel = "triton" if device.type == "cuda" and find_spec("triton") is not None else "blocks"
        check_kernel(kernel, device)
        self.kernel = kernel

    def depth_of(self, logits: AnyLogits) -> Tensor:
        """As `DepthLoss.depth_of`, without target maps."""
        with torch.autocast(logits.device.type, enabled=False):
            return fused(logits, self.bin_edges_m, kernel=self.kernel, readout=self.readout).depth_m


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's
        logits: Tensor,
        levels: Tensor,
        target: AnyTarget | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        blocks = _of_logits(logits)
        levels = levels.to(logits.device, blocks.dtype, non_blocking=True)[:, None]
        found = forward_blocks(blocks, levels, target)
        ctx.save_for_backward(logits, levels, *found[:3], found[4])
        return results_of(ctx, found, blocks.shape, target)

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
        logits, *saved = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        flat = gradient.view(*logits.shape[:2], -1)

        def put(work: Tensor, image: int, begin: int, end: int) -> None:
            flat[image, :, begin:end].copy_(work)

        backward_blocks(_of_logits(logits), put, ctx.target, tuple(saved), of_mean, of_kl)
        return gradient, None, None


def _of_logits(logits: Tensor) -> Blocks:
    batch, bins, height, width = logits.shape
    flat = logits.flatten(2)

    def fill(work: Tensor, image: int, begin: int, end: int) -> None:
        work.copy_(flat[image, :, begin:end])

    shape = (batch, bins, height, width)
    return Blocks(shape, work_type(logits), logits.device, blocks_of(shape, logits.device), fill)

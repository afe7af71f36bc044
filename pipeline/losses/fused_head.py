"""The last 1x1 convolution of a student computed inside the loss, so that full-size logits are never in memory.

A block of logits is a matrix product of the head's weights and a block of features. Forward keeps five numbers per
pixel; backward computes the block again and turns its gradient into those of features, weight and bias.

Shape legend: B batch, C channels of the features, K bins, h w pixels, P = h w, n pixels of a block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .blocks import Blocks, backward_blocks, blocks_of, forward_blocks, results_of

if TYPE_CHECKING:
    from .base import LazyLogits
    from .targets import AnyTarget


class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        levels: Tensor,
        target: AnyTarget | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        blocks = _of_features(features, weight, bias)
        levels = levels.to(features.device, blocks.dtype, non_blocking=True)[:, None]
        found = forward_blocks(blocks, levels, target)
        ctx.save_for_backward(features, weight, bias, levels, *found[:3], found[4])
        return results_of(ctx, found, blocks.shape, target)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401 - as above
        of_mean: Tensor | None,
        of_kl: Tensor | None,
        _: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        if of_mean is None and of_kl is None:
            return None, None, None, None, None
        features, weight, bias, *saved = ctx.saved_tensors
        flat, of_features = features.flatten(2), torch.empty_like(features)
        flat_gradient = of_features.view(*features.shape[:2], -1)
        of_weight = torch.zeros(weight.shape, dtype=saved[0].dtype, device=weight.device)
        of_bias = torch.zeros(bias.shape, dtype=saved[0].dtype, device=weight.device)
        transposed = weight.t().to(features.dtype)

        def put(work: Tensor, image: int, begin: int, end: int) -> None:
            of_bias.add_(work.sum(dim=1))
            work = work.to(features.dtype)
            flat_gradient[image, :, begin:end].copy_(transposed @ work)
            of_weight.add_((work @ flat[image, :, begin:end].t()).to(of_weight.dtype))

        backward_blocks(_of_features(features, weight, bias), put, ctx.target, tuple(saved), of_mean, of_kl)
        return of_features, of_weight.to(weight.dtype), of_bias.to(bias.dtype), None, None


def _of_features(features: Tensor, weight: Tensor, bias: Tensor) -> Blocks:
    batch, _, height, width = features.shape
    flat = features.flatten(2)
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    weight, bias = weight.to(features.dtype), bias.to(dtype)[:, None]

    def fill(work: Tensor, image: int, begin: int, end: int) -> None:
        torch.add(weight @ flat[image, :, begin:end], bias, out=work)

    shape = (batch, weight.shape[0], height, width)
    return Blocks(shape, dtype, features.device, blocks_of(shape, features.device), fill)


def fused_head(
    logits: LazyLogits, levels: Tensor, target: AnyTarget | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return mean of the levels (K,), KL and mass of the maps, (B, 1, h, w), as in `blockwise.Fused`."""
    features = logits.features
    if features.stride(2) != features.shape[3] * features.stride(3):
        features = features.contiguous()
    found: tuple[Tensor, Tensor | None, Tensor | None] = _FusedHead.apply(  # type: ignore[no-untyped-call]  # torch's
        features, logits.weight, logits.bias, levels, target
    )
    return found

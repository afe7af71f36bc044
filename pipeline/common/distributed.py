"""Training with several processes: sums, means and agreement. With one process everything here is a no-op.

`torchrun` starts the processes. Each holds the whole network and a part of every batch. A loss is a function of sums
over the whole batch (`all_sum`), so every process computes the same loss, not the loss of its part. Backwards,
`all_sum` sums what the processes send: each gradient is that of all copies of the loss together, and their mean
over the processes (`average_gradients`) is the gradient of one process that sees the whole batch.

Shape legend: B the process's part of the batch, C channels, H W pixels.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.autograd.function import FunctionCtx
    from torch.distributed.distributed_c10d import Store

PATIENCE = timedelta(hours=1)
"""Timeout of the other processes while rank 0 validates or writes."""


def world_size() -> int:
    """Number of processes that train together."""
    return int(os.environ["WORLD_SIZE"]) if _launched() else 1


def rank() -> int:
    """Rank of this process. Only rank 0 writes and prints."""
    return int(os.environ["RANK"]) if _launched() else 0


def local_rank() -> int:
    """Rank of this process on its machine."""
    return int(os.environ["LOCAL_RANK"]) if _launched() else 0


def _launched() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched()


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Join the processes that `torchrun` started, within the context."""
    if world_size() == 1 or dist.is_initialized():
        yield
        return
    from torch.distributed.rendezvous import rendezvous  # a build of torch without processes has none

    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Flags and steps are small and on the CPU: over gloo they do not wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, rank, processes = next(rendezvous("env://", timeout=PATIENCE))
    dist.init_process_group(
        backend, store=_fresh(store, rank, processes), rank=rank, world_size=processes, timeout=PATIENCE
    )
    try:
        yield
    finally:
        # Also after a failure, so that the others see at once that this process is gone.
        dist.destroy_process_group()


def _fresh(store: Store, rank: int, processes: int) -> Store:
    """A part of the store in which processes find each other that holds nothing of an earlier attempt.

    `torchrun` keeps its store when it starts processes again, whose addresses are no longer served. So each
    draws a name, the first calls them all, and when all have answered to this very call they are together.
    Raises PipelineError where one does not come.
    """
    from torch.distributed.distributed_c10d import PrefixStore  # as in `together`

    mine, last = uuid4().hex, time.monotonic() + PATIENCE.total_seconds()
    store.set(f"name {rank}", mine)
    while time.monotonic() < last:
        if rank == 0:
            call = " ".join(_known(store, f"name {one}") for one in range(processes))
            store.set("call", call)
        else:
            call = _known(store, "call")
        if mine in call.split():
            store.set(f"answer {rank}", call)
            if rank == 0 and all(_known(store, f"answer {one}") == call for one in range(processes)):
                store.set("together", call)
            if _known(store, "together") == call:
                return PrefixStore(hashlib.sha256(call.encode()).hexdigest(), store)
        time.sleep(0.02)
    raise PipelineError(
        f"some of the {processes} processes of this run did not start: read their messages, and start again"
    )


def _known(store: Store, key: str) -> str:
    """Return the value of a key, or an empty string."""
    return store.get(key).decode() if store.check([key]) else ""


def all_sum(*parts: Tensor) -> tuple[Tensor, ...]:
    """Return each tensor summed over all processes, with its gradient; unchanged with one process.

    The sum is float64, so that the number of processes hardly shows in a float32 result.
    """
    if not _together():
        return parts
    flat = torch.cat([part.reshape(-1).to(torch.float64) for part in parts])
    summed: Tensor = _AllSum.apply(flat)  # type: ignore[no-untyped-call]  # torch does not annotate it
    pieces = torch.split(summed, [part.numel() for part in parts])
    return tuple(piece.view(part.shape).to(part.dtype) for piece, part in zip(pieces, parts, strict=True))


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, part: Tensor) -> Tensor:  # noqa: ARG004 - autograd's shape
        return _reduced(part)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:  # noqa: ARG004 - as above
        return _reduced(gradient)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average each gradient over the processes, in one message. The module docstring says why."""
    if not _together():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sizes = [gradient.numel() for gradient in gradients]
    mean = _reduced(torch.cat([gradient.reshape(-1) for gradient in gradients])) / dist.get_world_size()
    for gradient, piece in zip(gradients, torch.split(mean, sizes), strict=True):
        gradient.copy_(piece.view(gradient.shape))


def any_of(flag: bool) -> bool:
    """Return whether the flag is set in any process."""
    return bool(_reduced(torch.tensor(float(flag)))) if _together() else flag


def check_agreement(what: str, value: int) -> None:
    """Raise PipelineError in every process unless all have the same value, a whole number of at most 53 bits."""
    if not _together():
        return
    ends = torch.tensor([value, -value], dtype=torch.float64)
    _reduce(ends, dist.ReduceOp.MAX)
    if ends[0] != -ends[1]:
        raise PipelineError(
            f"the processes of this run disagree on {what}: give all of them the same command, and an `out` on a "
            "shared disk"
        )


def barrier() -> None:
    """Wait until every process is here."""
    any_of(flag=False)


def _reduced(part: Tensor) -> Tensor:
    whole = part.clone(memory_format=torch.contiguous_format)
    _reduce(whole, dist.ReduceOp.SUM)
    return whole


def _reduce(whole: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
    try:
        dist.all_reduce(whole, operation)
    except RuntimeError as error:
        raise PipelineError(
            "another process of this run has ended; its own message says why. The same command continues from "
            "the last checkpoint"
        ) from error


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics in training are those of the whole batch, not of the process's part.

    torch's own SyncBatchNorm refuses the CPU. Parameters and buffers have the same names and values.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, H, W); running statistics equal those of one process."""
        if not (self.training and _together()):
            return super().forward(x)
        mean, variance, count = _statistics(x.detach())
        self._remember(mean, variance * count / max(count - 1, 1))
        mean, variance = mean.to(self.weight), variance.to(self.weight)
        y: Tensor = _Normalized.apply(x, self.weight, self.bias, mean, variance, self.eps, count)  # type: ignore[no-untyped-call]
        return y

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var), self.momentum)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and variance (C,) float64 over all processes, and the number of pixels B H W of all."""
    mean, variance = (part.double() for part in torch.batch_norm_update_stats(x, None, None, 0.0))
    pixels = x.new_full((1,), x.numel() // x.shape[1], dtype=torch.float64)
    # Each part's variance is about its own mean; combining them in float64 loses nothing
    sums, squares, total = all_sum(pixels * mean, pixels * (variance + mean.square()), pixels)
    mean = sums / total
    return mean, (squares / total - mean.square()).clamp_min(0), float(total)


class _Normalized(torch.autograd.Function):
    """Batch norm by given statistics, with the gradient that goes through them to every process."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        count: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.count = eps, count
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - as above
        x, weight, mean, variance = ctx.saved_tensors
        # As if the statistics were constants: (dx, sum of dy xhat, sum of dy)
        direct, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, train=False, eps=ctx.eps, output_mask=[True, True, True]
        )
        with_x, alone = _reduced(torch.stack([of_weight, of_bias]).double()) / ctx.count
        spread = torch.rsqrt(variance.double() + ctx.eps)
        slope = weight * spread.square() * with_x
        offset = weight * spread * alone - slope * mean
        shape, wide = (1, -1, 1, 1), weight.dtype  # x may be half precision, under autocast
        through = torch.addcmul(offset.to(wide).view(shape), x.to(wide), slope.to(wide).view(shape))
        return (direct - through).to(x.dtype), of_weight, of_bias, None, None, None, None


def share_norms(network: nn.Module) -> None:
    """Replace every BatchNorm2d by a SharedBatchNorm, if there are several processes.

    Raises PipelineError for another kind of batch norm, such as those of timm that have an activation inside.
    """
    if world_size() == 1:
        return
    for parent in list(network.modules()):
        for name, norm in list(parent.named_children()):
            if not isinstance(norm, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - the base of all that are one
                continue
            usual = norm.affine and norm.track_running_stats and norm.momentum is not None
            if type(norm) is not nn.BatchNorm2d or not usual:
                raise PipelineError(
                    f"{norm} cannot be computed over several processes: train this student with one process "
                    "(`accumulate` makes large batches fit)"
                )
            shared = SharedBatchNorm(norm.num_features, norm.eps, norm.momentum)
            shared.load_state_dict(norm.state_dict())
            setattr(parent, name, shared.to(norm.weight.device))

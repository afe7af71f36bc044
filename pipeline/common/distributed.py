"""Data-parallel training: sums, means and agreement between processes. With one process everything is a no-op.

`torchrun` starts the processes. Each holds the whole network and a part of every batch. A loss is a function of sums
over the whole batch (`all_sum`), so every process computes the same loss. The backward pass of `all_sum` sums the
gradients of all processes; their mean (`average_gradients`) is the gradient of one process with the whole batch.

Shape legend: B this process's part of the batch, C channels, H W pixels.
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

TIMEOUT = timedelta(hours=1)
"""The other ranks wait this long while rank 0 validates or writes."""


def world_size() -> int:
    """Number of processes that train together."""
    return int(os.environ["WORLD_SIZE"]) if _launched() else 1


def rank() -> int:
    """Rank of this process. Only rank 0 writes and prints."""
    return int(os.environ["RANK"]) if _launched() else 0


def local_rank() -> int:
    """Rank of this process on its machine."""
    return int(os.environ["LOCAL_RANK"]) if _launched() else 0


def processes_here() -> int:
    """Number of processes of this run on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if _launched() else 1


def _launched() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched()


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Initialize the process group of the processes that `torchrun` started; a context manager."""
    if world_size() == 1 or dist.is_initialized():
        yield
        return
    from torch.distributed.rendezvous import rendezvous  # missing in a build of torch without distributed

    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Flags and steps are small tensors on the CPU: with gloo they do not wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    dist.init_process_group(backend, store=_fresh_store(store, rank, size), rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        yield
    finally:
        # Also after a failure, so that the other processes see it at once.
        dist.destroy_process_group()


def _fresh_store(store: Store, rank: int, size: int) -> Store:
    """Return a part of the rendezvous store without keys of an earlier attempt.

    When `torchrun` restarts processes it keeps its store, which still has the addresses of the old ones. So each
    process draws a random name, rank 0 publishes all names as a call, and every process answers this call. When all
    answers agree, the hash of the call is the prefix of the new store. Raises PipelineError if a process is missing.
    """
    from torch.distributed.distributed_c10d import PrefixStore  # as in `together`

    name, deadline = uuid4().hex, time.monotonic() + TIMEOUT.total_seconds()
    store.set(f"name {rank}", name)
    while time.monotonic() < deadline:
        if rank == 0:
            call = " ".join(_get(store, f"name {other}") for other in range(size))
            store.set("call", call)
        else:
            call = _get(store, "call")
        if name in call.split():
            store.set(f"answer {rank}", call)
            if rank == 0 and all(_get(store, f"answer {other}") == call for other in range(size)):
                store.set("together", call)
            if _get(store, "together") == call:
                return PrefixStore(hashlib.sha256(call.encode()).hexdigest(), store)
        time.sleep(0.02)
    raise PipelineError(f"some of the {size} processes of this run did not start: read their messages and start again")


def _get(store: Store, key: str) -> str:
    """Return the value of a key, or an empty string."""
    return store.get(key).decode() if store.check([key]) else ""


def all_sum(*parts: Tensor) -> tuple[Tensor, ...]:
    """Return each tensor summed over all processes, with its gradient; unchanged with one process.

    The sum is float64, so that the number of processes hardly changes a float32 result.
    """
    if not _is_initialized():
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
    if not _is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sizes = [gradient.numel() for gradient in gradients]
    mean = _reduced(torch.cat([gradient.reshape(-1) for gradient in gradients])) / dist.get_world_size()
    for gradient, piece in zip(gradients, torch.split(mean, sizes), strict=True):
        gradient.copy_(piece.view(gradient.shape))


def any_of(flag: bool) -> bool:
    """Return whether the flag is set in any process."""
    return bool(_reduced(torch.tensor(float(flag)))) if _is_initialized() else flag


def check_agreement(what: str, value: int) -> None:
    """Raise PipelineError in every process unless all have the same value, a whole number of at most 53 bits."""
    if not _is_initialized():
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
    total = part.clone(memory_format=torch.contiguous_format)
    _reduce(total, dist.ReduceOp.SUM)
    return total


def _reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
    try:
        dist.all_reduce(tensor, operation)
    except RuntimeError as error:
        raise PipelineError(
            "another process of this run has ended; its message says why. Run the same command again to resume "
            "from the last checkpoint"
        ) from error


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm with training statistics of the whole batch over all processes.

    torch's SyncBatchNorm does not run on the CPU. Parameters and buffers have the same names and values.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, H, W)."""
        if not (self.training and _is_initialized()):
            return super().forward(x)
        mean, variance, count = _statistics(x.detach())
        self._update_running(mean, variance * count / max(count - 1, 1))
        mean, variance = mean.to(self.weight), variance.to(self.weight)
        y: Tensor = _Normalized.apply(x, self.weight, self.bias, mean, variance, self.eps, count)  # type: ignore[no-untyped-call]
        return y

    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var), self.momentum)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return mean and variance (C,) float64 over all processes, and the total number of pixels B H W."""
    mean, variance = (part.double() for part in torch.batch_norm_update_stats(x, None, None, 0.0))
    pixels = x.new_full((1,), x.numel() // x.shape[1], dtype=torch.float64)
    # Each variance is about the mean of its part; combining them in float64 loses nothing
    sums, squares, total = all_sum(pixels * mean, pixels * (variance + mean.square()), pixels)
    mean = sums / total
    return mean, (squares / total - mean.square()).clamp_min(0), float(total)


class _Normalized(torch.autograd.Function):
    """Batch norm with given statistics; its gradient includes the path through the statistics of all processes."""

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
        shape, dtype = (1, -1, 1, 1), weight.dtype  # x may be half precision, under autocast
        through = torch.addcmul(offset.to(dtype).view(shape), x.to(dtype), slope.to(dtype).view(shape))
        return (direct - through).to(x.dtype), of_weight, of_bias, None, None, None, None


def share_norms(network: nn.Module) -> None:
    """Replace every BatchNorm2d by a SharedBatchNorm if there are several processes.

    Raises PipelineError for another batch norm, such as timm's with a built-in activation.
    """
    if world_size() == 1:
        return
    for parent in list(network.modules()):
        for name, norm in list(parent.named_children()):
            if not isinstance(norm, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - the base class of all
                continue
            is_standard = norm.affine and norm.track_running_stats and norm.momentum is not None
            if type(norm) is not nn.BatchNorm2d or not is_standard:
                raise PipelineError(
                    f"{norm} cannot be computed over several processes: train this student with one process "
                    "(`accumulate` makes large batches fit)"
                )
            shared = SharedBatchNorm(norm.num_features, norm.eps, norm.momentum)
            shared.load_state_dict(norm.state_dict())
            setattr(parent, name, shared.to(norm.weight.device))

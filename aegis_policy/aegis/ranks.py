"""What the processes of one data-parallel training share; in a single process every function here is the identity.

Data parallelism averages gradients over the ranks: it trains on `mean_r L_r`. Where a loss is a function of sums over
the *global* batch, such as a ratio of two sums or a distance of moments, that mean is not the loss of the global batch.

    average_over_ranks(s)    value: mean over ranks of s_r        gradient: that of this rank's own s_r

repairs it. With `F(mean_r s_r)` as the loss of every rank, the gradients `F' ds_r` average to that of `F`, without any
communication in the backward pass. It holds where `F` sees a rank's own activations through the averages alone.

All of it runs over the default process group, and every rank must take part in every call.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Processes of this training; 1 where torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 where torch.distributed is not initialised."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def average_over_ranks(x: Tensor) -> Tensor:
    """The mean of `x` over all ranks, bit-identical on each; its gradient is that of this rank's own `x`.

    Args:
        x: Any shape, the same on every rank; floating point.
    """
    return x if world_size() == 1 else _Average.apply(x)


def average_all_over_ranks(xs: Sequence[Tensor]) -> list[Tensor]:
    """`average_over_ranks` of each, in one message.

    Args:
        xs: At least one tensor, all of one dtype and device.
    """
    if world_size() == 1:
        return list(xs)
    parts = average_over_ranks(torch.cat([x.flatten() for x in xs])).split([x.numel() for x in xs])
    return [part.view(x.shape) for part, x in zip(parts, xs, strict=True)]


@torch.no_grad()
def take_from_first(tensors: Iterable[Tensor], *, device: torch.device) -> None:
    """Overwrites tensors with those of rank 0, bit for bit.

    Args:
        tensors: Parallel on all ranks, same shapes and dtypes.
        device: Where the process group can send from (a GPU for NCCL).
    """
    if world_size() == 1:
        return
    for tensor in tensors:
        sent = tensor.to(device).contiguous()
        dist.broadcast(sent, src=0)
        if sent is not tensor:
            tensor.copy_(sent)


@torch.no_grad()
def on_every_rank(flag: Tensor) -> Tensor:
    """Whether a flag is set on all ranks, () bool on its device, without a synchronisation.

    Args:
        flag: () bool, where the process group can send from.
    """
    if world_size() == 1:
        return flag
    least = flag.to(torch.int32)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return least.bool()


def counts_over_ranks(flags: Sequence[bool], *, device: torch.device) -> list[int]:
    """On how many ranks each flag is set; synchronises with the device.

    Args:
        flags: Parallel on all ranks.
        device: Where the process group can send from.
    """
    counts = torch.tensor(flags, dtype=torch.int32, device=device)
    if world_size() > 1 and len(flags):
        dist.all_reduce(counts)
    return counts.tolist()


class _Average(torch.autograd.Function):
    """Forward the mean over ranks, backward nothing: each rank's gradient is for its own part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]

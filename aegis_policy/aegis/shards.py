"""Sums over a layer whose tensors are sharded: DTensors, as torch's `fully_shard` (FSDP2) leaves them.

A DTensor is a *global* tensor of which each process holds a part: it is already the one that all processes agree on, so
nothing about it is averaged over ranks. What the method asks of it:

    <g, a>, ||g||^2    products of the local parts, then one sum over the mesh dimensions that shard, for all products
                       of a layer together
    dW P               each row of dW alone, so rows on other processes do not matter: with W (out, in) sharded by rows
                       (dimension 0, as `fully_shard` does) it is the product of the local rows, and nothing is sent
"""

import math
from collections.abc import Hashable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

if dist.is_available():
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard


def is_sharded(t: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    return dist.is_available() and isinstance(t, DTensor)


def local(t: Tensor) -> Tensor:
    """This process's part of a DTensor, sharing its memory; any other tensor as it is."""
    return t.to_local() if dist.is_available() and isinstance(t, DTensor) else t


def row_width(weight: Tensor) -> int:
    """Numbers in a row of a weight (out, ...), of all processes' parts together."""
    return math.prod(weight.shape[1:])


def has_whole_rows(weight: Tensor) -> bool:
    """Whether each row of a weight lies on one process: not sharded, or sharded along dimension 0 alone."""
    if not (dist.is_available() and isinstance(weight, DTensor)):
        return True
    return all(p == Replicate() or (isinstance(p, Shard) and p.dim == 0) for p in weight.placements)


def sum_over_shards(values: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """The sum of values that were each formed from this process's part of a tensor.

    Args:
        values: One a part, all of one shape, dtype and device.
        parts: The tensors whose local parts gave them, DTensors or not. The sum over the other processes' parts is
            added to a DTensor's value; a replicated one counts once.

    Returns:
        The sum over all parts and shards, the same on each process of the mesh.

    Raises:
        ValueError: If a DTensor is a partial sum, of which no product can be formed.
    """
    totals: dict[Hashable, Tensor] = {}
    groups: dict[Hashable, list[dist.ProcessGroup]] = {}
    for value, part in zip(values, parts, strict=True):
        key, over = _sharding(part)
        totals[key] = totals[key] + value if key in totals else value.clone()
        groups[key] = over
    for key, total in totals.items():
        for group in groups[key]:
            dist.all_reduce(total, group=group)
    return torch.stack(list(totals.values())).sum(0)


def check_alike(tasks: Sequence[Tensor], anchors: Sequence[Tensor]) -> None:
    """Refuses an anchor gradient whose parts are not those of the task gradient.

    Raises:
        ValueError: With both placements and the remedy.
    """
    for task, anchor in zip(tasks, anchors, strict=True):
        if _placements(task) != _placements(anchor):
            raise ValueError(
                "The anchor gradient of a sharded parameter is a DTensor that is sharded as the parameter is; received "
                f"{_placements(task) or 'a plain tensor'} for the task and {_placements(anchor) or 'a plain tensor'} "
                "for the anchor. Under fully_shard let the penalty's own backward fill .grad, move that to "
                ".anchor_grad, then run the task's backward."
            )


def _placements(t: Tensor) -> tuple[object, ...]:
    return (t.device_mesh, *t.placements) if dist.is_available() and isinstance(t, DTensor) else ()


def _sharding(t: Tensor) -> tuple[Hashable, list[dist.ProcessGroup]]:
    if not (dist.is_available() and isinstance(t, DTensor)):
        return (), []
    if any(isinstance(p, Partial) for p in t.placements):
        raise ValueError(
            f"A product is formed of a DTensor that is sharded or replicated; this one is a partial sum "
            f"({t.placements}). Redistribute the gradient to its parameter's placements first."
        )
    dims = [dim for dim, placement in enumerate(t.placements) if placement != Replicate()]
    return (t.device_mesh, tuple(dims)), [t.device_mesh.get_group(dim) for dim in dims]

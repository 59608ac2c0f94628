"""The anchor gradient `param.anchor_grad`: what `param.grad` would be if the distance to the anchor were the loss.

With the task's loss `L`, the distance `D` and `w = dJ/dL`, where `J` is what `backward()` was called on:

    .grad  +=  w dL/dp,        .anchor_grad  +=  w dD/dp        (both as one backward pass comes through `L`)

`w` is 1 in a plain loop, `1/k` in each of k micro-batches, times the loss scale in float16. Seeded so, both gradients
are sums over the same micro-batches with the same weights, and the loss scale keeps both out of float16's underflow.
The scale that is left in `.anchor_grad` does not matter to a projection.

A distance may be a thousand times the loss, and a loss scale that suits the one overflows the other. Under float16 the
distance's backward pass therefore runs at the size of the loss; what it was divided by, a power of two, comes back in
the float32 of the result.

An anchor gradient is found outside the backward pass that data parallelism reduces, each rank's on its own batch.
Before anything is projected on it, it is averaged over the ranks, so that each removes the same and replicas stay
bit-identical. A mean of sums is the sum of means: the ranks are asked once a step, however many micro-batches it had.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aegis_policy.aegis.precision import all_finite, at_least_float32
from aegis_policy.aegis.ranks import counts_over_ranks, world_size
from aegis_policy.aegis.shards import is_sharded


def anchor_gradient(p: Tensor) -> Tensor | None:
    """What stands beside `p.grad`; None where nothing does."""
    return getattr(p, "anchor_grad", None)


def drop_anchor_gradients(parameters: Iterable[Tensor]) -> None:
    """Sets them back to None."""
    for p in parameters:
        if anchor_gradient(p) is not None:
            p.anchor_grad = None  # type: ignore[attr-defined]


def backward_beside(
    loss: Tensor,
    distance: Tensor,
    parameters: Iterable[nn.Parameter],
    *,
    done: Callable[[Tensor], None] | None = None,
) -> None:
    """Lets the backward pass of `distance` run as soon as that of `loss` begins.

    Until then nothing happens: a loss that is thrown away leaves no anchor gradient. The first pass of a step (no
    parameter has a `.grad` yet) replaces what an abandoned step may have left, later ones add to it. A gradient of the
    distance that is not finite makes the task's so as well: that is the overflow which a loss scaler looks for, on
    every rank; without one the optimizer refuses the step.

    Args:
        loss: The task's, of any shape, with its graph.
        distance: (), with its graph; kept until the loss is gone, and what it shares with the loss's kept through it.
        parameters: Those whose anchor gradient is wanted.
        done: Called afterwards with a () bool: whether all of the distance's gradient was finite.
    """
    parameters = list(parameters)
    excess = _excess(loss, distance)

    def begin(upstream: Tensor) -> Tensor:
        weight = upstream.detach().abs().sum().to(distance.dtype)
        if excess is not None:
            weight = weight / excess
        gradients = torch.autograd.grad(distance, parameters, weight, retain_graph=True, allow_unused=True)
        if excess is not None:
            gradients = tuple(None if g is None else g * excess for g in gradients)
        if all(p.grad is None for p in parameters):
            drop_anchor_gradients(parameters)
        for p, gradient in zip(parameters, gradients, strict=True):
            before = anchor_gradient(p)
            if gradient is not None:
                # Not in place: what autograd returns may be a view that repeats one number.
                p.anchor_grad = gradient if before is None else before + gradient  # type: ignore[attr-defined]
        finite = all_finite([g for g in gradients if g is not None])
        if done is not None:
            done(finite)
        return torch.where(finite.to(upstream.device), upstream, torch.nan)

    loss.register_hook(begin)


def _excess(loss: Tensor, distance: Tensor) -> Tensor | None:
    """How many times the loss the distance is, rounded up to a power of two; None where float16 takes no part."""
    device = distance.device.type
    if not (torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16):
        return None
    ratio = distance.detach() / loss.detach().abs().mean()
    ratio = torch.where(ratio.isfinite(), ratio, 1.0)  # a loss of 0; what is not finite stays so for the scaler to find
    return ratio.clamp(min=1).log2().ceil().exp2()


def complete_over_ranks(params: Sequence[Any]) -> None:
    """Gives a parameter a zero anchor gradient where this rank has none and another has one.

    A rank whose samples say nothing about the anchor so takes part in the step, and adds nothing to the direction.
    One message of two numbers a parameter, and a synchronisation with the device. DTensors are left alone.

    Args:
        params: All protected parameters, in one order on all ranks, with a gradient or without.

    Raises:
        RuntimeError: On every rank, if some ranks have a gradient for a parameter and others do not.
    """
    plain = [p for p in params if not is_sharded(p)]
    if world_size() == 1 or not plain:
        return
    flags = [p.grad is not None for p in plain] + [anchor_gradient(p) is not None for p in plain]
    counts = counts_over_ranks(flags, device=plain[0].device)
    for p, moved, anchored in zip(plain, counts[: len(plain)], counts[len(plain) :], strict=True):
        if moved not in (0, world_size()):
            raise RuntimeError(
                f"Replicas take the same steps, so a parameter has a gradient on every rank or on none; one of shape "
                f"{tuple(p.shape)} has one on {moved} of {world_size()} ranks. Wrap the model in "
                "DistributedDataParallel(find_unused_parameters=True), and skip a step on all ranks or on none."
            )
        if anchored and anchor_gradient(p) is None:
            p.anchor_grad = torch.zeros_like(p)


def take_averaged(params: Sequence[Any]) -> list[Tensor]:
    """The anchor gradients of one layer, averaged over ranks; removed from the parameters.

    Args:
        params: Those of a layer that have one, the same on all ranks.
    """
    grads: list[Tensor] = [p.anchor_grad for p in params]
    drop_anchor_gradients(params)
    own = [i for i, g in enumerate(grads) if not is_sharded(g)]  # a DTensor is everybody's already
    if world_size() == 1 or not own:
        return grads
    flat = torch.cat([grads[i].to(at_least_float32(grads[i].dtype)).flatten() for i in own])
    dist.all_reduce(flat)
    parts = (flat / world_size()).split([grads[i].numel() for i in own])
    for i, part in zip(own, parts, strict=True):
        grads[i] = part.view(grads[i].shape)
    return grads

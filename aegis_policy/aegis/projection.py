"""The projection of one layer's task gradient onto the half-space that respects the anchor (arXiv 2604.16067).

All parameters of a layer are one vector. With `g` the task's and `a` the anchor penalty's gradient, `d = <g, a>`:

    d < 0 (a step along -g raises the penalty):   g <- g - d / ||a||^2 a,  so that <g, a> = 0
    otherwise, and where a = 0:                   g as it is, bit for bit

Deviation from the paper: no epsilon in the denominator. It would leave `<g, a> = d eps / (||a||^2 + eps) < 0`, nearly
all of the conflict when the anchor gradient is small. Instead everything runs in float64, where a gradient of 1e-20,
whose square is no float32 number, projects as well as one of 1 (on MPS, which has no float64, in float32 after `a` is
divided by its largest absolute entry). The result does not depend on the scale of `a`.

The projected gradient is rounded once to the task gradient's dtype, which may bring back
`<g, a> >= -eps(dtype) ||g|| ||a||` and no more. NaN or inf in the anchor gradient makes the result NaN: loud, not open.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aegis_policy.aegis.precision import accumulation_dtype
from aegis_policy.aegis.shards import check_alike, local, sum_over_shards


@dataclass(frozen=True)
class ProjectionReport:
    """What a projection did to one layer.

    Zero-dimensional tensors on the layer's device, so that it is the reading that synchronises.

    Attributes:
        conflict: Bool, whether anything was removed.
        cosine: Cosine of the angle between task and anchor gradient before the projection, 0 if either is
            zero. None where no anchor gradient takes part (the subspace form).
        energy_shed: `1 - ||g||^2 / ||g_task||^2`, in [0, 1]; 0 for a zero task gradient.
    """

    conflict: Tensor
    cosine: Tensor | None
    energy_shed: Tensor


def project_layer(
    task_grads: Sequence[Tensor], anchor_grads: Sequence[Tensor]
) -> tuple[list[Tensor], ProjectionReport]:
    """Remove from a layer's task gradient the component that points against the anchor.

    Args:
        task_grads: One tensor a parameter of the layer, any shapes. DTensors (FSDP2) are one vector over all
            their shards.
        anchor_grads: Gradients of the anchor penalty, parallel to `task_grads`, same shapes and, for
            DTensors, same placements; dtypes may differ.

    Returns:
        The projected gradients, in the task gradients' dtypes, and the report. Inputs are not changed.

    Raises:
        ValueError: If the lists are empty or do not match, or a DTensor is a partial sum.
    """
    _check(task_grads, anchor_grads)
    dtype = accumulation_dtype(task_grads[0].device)
    anchors = _without_underflow([a.detach().to(dtype) for a in anchor_grads])
    dot, task_square, anchor_square = _products(task_grads, anchors, dtype)

    # Written so that an anchor gradient that is not finite counts as a conflict and turns the result into NaN.
    conflict = ~((dot >= 0) & anchor_square.isfinite())
    coefficient = dot / torch.where(anchor_square > 0, anchor_square, 1.0)
    projected = [
        torch.where(conflict, torch.addcmul(g.detach().to(dtype), a, -coefficient).to(g.dtype), g)
        for g, a in zip(task_grads, anchors, strict=True)
    ]

    both = (task_square * anchor_square).sqrt()
    cosine = dot / torch.where(both > 0, both, 1.0)
    # ||g||^2 = ||g_task||^2 - d^2 / ||a||^2 by Pythagoras, so the share that is gone is the squared cosine.
    energy_shed = torch.where(conflict, cosine.square(), 0.0)
    return projected, ProjectionReport(conflict, cosine, energy_shed)


def report_of(norms: Sequence[Tensor], parts: Sequence[Tensor]) -> ProjectionReport:
    """A layer's report, from its weights' squared norms (2,) before and after.

    Args:
        norms: Of this process's part of each weight.
        parts: The weights, which say whether there are other parts.
    """
    wanted, taken = sum_over_shards(norms, parts)
    shed = torch.where(wanted > 0, 1 - taken / torch.where(wanted > 0, wanted, 1.0), 0.0).clamp(min=0)
    return ProjectionReport(conflict=shed > 0, cosine=None, energy_shed=shed)


def _without_underflow(anchors: list[Tensor]) -> list[Tensor]:
    """The anchor gradient at a scale at which its square is a number; the projection does not depend on the scale."""
    if anchors[0].dtype == torch.float64:  # the square of the smallest float32 number is far inside float64
        return anchors
    largest = torch.stack([a.abs().amax() for a in anchors]).amax()
    scale = torch.where(largest == 0, 1.0, largest)
    return [a / scale for a in anchors]


def _products(tasks: Sequence[Tensor], anchors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """<g, a>, ||g||^2, ||a||^2 over the whole layer."""
    products = []
    for g, a in zip(tasks, anchors, strict=True):
        flat_g, flat_a = local(g.detach()).to(dtype).flatten(), local(a).flatten()
        products.append(torch.stack([flat_g.dot(flat_a), flat_g.dot(flat_g), flat_a.dot(flat_a)]))
    dot, task_square, anchor_square = sum_over_shards(products, tasks)
    return dot, task_square, anchor_square


def _check(task_grads: Sequence[Tensor], anchor_grads: Sequence[Tensor]) -> None:
    if not task_grads:
        raise ValueError("A layer has at least one gradient; received none.")
    task_shapes = [tuple(t.shape) for t in task_grads]
    anchor_shapes = [tuple(t.shape) for t in anchor_grads]
    if task_shapes != anchor_shapes:
        raise ValueError(
            "Task and anchor gradients are parallel lists over one layer's parameters; received shapes "
            f"{task_shapes} and {anchor_shapes}. Leave a parameter without an anchor gradient out of both."
        )
    check_alike(task_grads, anchor_grads)

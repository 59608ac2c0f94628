"""Refuses a step whose gradients are not finite, before anything of it is written, and names the layer where it began.

All gradients of a step, anchor gradients among them, come down to one number, the largest entry, and that one number is
read from the device: whether to step is decided on the host, so it is one synchronisation a step, and none where all is
left to torch (`on_nonfinite=None`).

Clipping multiplies every gradient by one number that is NaN as soon as one entry is, so after it all layers look alike.
`note_gradients`, called when backward ends, keeps what stood there before: a number a layer, on the device, not read
unless a step is refused.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aegis_policy.aegis.anchor_gradient import anchor_gradient
from aegis_policy.aegis.precision import all_finite, largest_entry
from aegis_policy.aegis.ranks import on_every_rank
from aegis_policy.aegis.shards import is_sharded

Groups = Sequence[Mapping[str, Any]]
ON_NONFINITE = ("stop", "skip")

_NAMED = 4  # layers that a message spells out


def when_backward_ends(loss: Tensor, call: Callable[[], None]) -> None:
    """Calls `call` whenever a backward pass through `loss` has left all its gradients."""

    def begin(_: Tensor) -> None:
        torch.autograd.Variable._execution_engine.queue_callback(call)

    loss.register_hook(begin)


def note_gradients(layers: Mapping[str, Iterable[Tensor]]) -> None:
    """Leaves beside each parameter its layer's place and name and the largest entry of that layer's gradient.

    Args:
        layers: Name -> parameters, from the network's input to its output.
    """
    for place, (name, parameters) in enumerate(layers.items()):
        with_gradient = [p for p in parameters if p.grad is not None]
        if with_gradient:
            largest = largest_entry([p.grad for p in with_gradient if p.grad is not None])
            for p in with_gradient:
                p.noted = (place, name, largest)  # type: ignore[attr-defined]


def may_step(groups: Groups, layers: Mapping[str, Groups], *, on_nonfinite: str | None) -> bool:
    """Whether all that a step would use is finite; the same answer on every rank.

    Args:
        groups: An optimizer's parameter groups.
        layers: Protected layer -> those of them that are it.
        on_nonfinite: "stop", "skip", or None not to look.

    Raises:
        FloatingPointError: Under "stop", if something is not.
    """
    gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    if on_nonfinite is None or not gradients:
        return True
    anchors = [
        (layer, gradient)
        for layer, own in layers.items()
        for group in own
        for p in group["params"]
        if p.grad is not None and (gradient := anchor_gradient(p)) is not None
    ]
    finite = all_finite([*gradients, *(gradient for _, gradient in anchors)])
    # Data parallelism has made the task's gradients the same everywhere; anchor gradients are still each rank's own,
    # and each rank has seen its part of those that are sharded.
    if anchors or any(is_sharded(g) for g in gradients):
        finite = on_every_rank(finite)
    if finite:  # the synchronisation
        return True
    message = (
        f"{_culprit(groups, anchors)} nan or inf. Nothing of this step was written: weights and Adam's moments are "
        "those of the step before."
    )
    if on_nonfinite == "skip":
        logging.getLogger(__name__).warning(message)
        return False
    raise FloatingPointError(
        f"{message} Look for a sample that makes it so, lower the learning rate, or train in float32; "
        'on_nonfinite="skip" leaves such steps out and goes on.'
    )


def _culprit(groups: Groups, anchors: Sequence[tuple[str, Tensor]]) -> str:
    """Whose gradient it was: "... has"."""
    with_gradient = [(name, p) for name, p in _named(groups) if p.grad is not None]
    noted = {p.noted[1]: (p.noted[0], p.noted[2]) for _, p in with_gradient if hasattr(p, "noted")}
    bad = [layer for layer, gradient in anchors if not all_finite([gradient])]
    if bad:
        return f"The anchor gradient of {_listed(bad, noted)} has"
    bad = [name for name, (_, largest) in noted.items() if not largest.isfinite()]
    if bad:
        return f"The gradient of {_listed(bad, noted)} has"
    now = _listed([name for name, p in with_gradient if not all_finite([p.grad])], {})
    here = " (finite when this process's backward ended: look at the others and at what came after)" if noted else ""
    return f"The gradient of {now or 'another process'}{here} has"


def _named(groups: Groups) -> Iterator[tuple[str, Any]]:
    """Each parameter with what is known of its name: its layer's, its own, or its place."""
    for number, group in enumerate(groups):
        for i, p in enumerate(group["params"]):
            names = group.get("param_names")
            place = f"parameter {i} of group {number}, shape {tuple(p.shape)}"
            yield group.get("layer") or (names[i] if names else place), p


def _listed(names: Sequence[str], noted: Mapping[str, tuple[int, Tensor]]) -> str:
    unique = sorted(dict.fromkeys(names), key=lambda name: noted[name][0] if name in noted else 0)
    few = len(unique) <= _NAMED
    listed = ", ".join(map(repr, unique)) if few else f"{unique[0]!r}, ..., {unique[-1]!r} ({len(unique)} layers)"
    # backward carries nan and inf on towards the input
    return listed + (", beginning with the last," if noted and len(unique) > 1 else "")

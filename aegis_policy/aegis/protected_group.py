"""What a protected parameter group must hold, checked before anything trains."""

from typing import Any

from torch import Tensor

from aegis_policy.aegis.projector import Projector
from aegis_policy.aegis.shards import has_whole_rows, row_width

SUBSPACES = ("subspace", "subspace_gradient")  # restricted by projectors; other projections by an anchor gradient


def check_protected(
    group: dict[str, Any], projectors: list[Projector | Tensor | None] | None, *, projection: str
) -> None:
    """Refuses a parameter group that asks for something that the projection cannot protect.

    Args:
        group: With AdamW's own keys filled in, and `"layer"`.
        projectors: As given beside it, parallel to its parameters.
        projection: Of the optimizer.

    Raises:
        ValueError: With the rule, what was received and the remedy.
    """
    layer = group["layer"]
    if not isinstance(layer, str):
        raise ValueError(f"A protected layer's name is a string; received {layer!r}.")
    if group["maximize"]:
        raise ValueError(
            f"Layer {layer!r} is protected and maximize is set: the penalty's half-space is meant for "
            "descent. Minimise the negative."
        )
    if projection == "first_moment" and group["betas"][0] == 0:
        raise ValueError(
            'projection="first_moment" projects what enters the first moment, and with betas '
            f'{group["betas"]} there is none. Give a first beta above 0, or projection="update".'
        )
    if projection not in SUBSPACES:
        return
    params = group["params"]
    if projectors is None or len(projectors) != len(params):
        raise ValueError(
            f'Under projection="{projection}" a protected group has "projectors" parallel to "params"; layer '
            f"{layer!r} has {len(params)} parameters and "
            f"{'no' if projectors is None else len(projectors)} projectors. Take them from "
            "GaussianAnchor.projectors()."
        )
    for p, projector in zip(params, projectors, strict=True):
        if projector is None and p.requires_grad:
            raise ValueError(no_projector(layer, p))
        if projector is not None and (p.ndim < 2 or tuple(projector.shape) != (row_width(p),) * 2):
            raise ValueError(
                f"A projector is (in, in) for a weight (out, in); in layer {layer!r} it is "
                f"{tuple(projector.shape)} for {tuple(p.shape)}. Check that projectors are in the order "
                "of params."
            )
        if projector is not None and not has_whole_rows(p):
            raise ValueError(
                "A projector acts on a weight's rows, so each row lies on one process; in layer "
                f"{layer!r} a weight of shape {tuple(p.shape)} is sharded as {getattr(p, 'placements', ())}. Shard "
                "along dimension 0, as fully_shard does by default."
            )


def no_projector(layer: str, p: Tensor) -> str:
    """The message about a parameter whose steps nothing restricts."""
    return (
        "Under a subspace projection every trained parameter of a protected layer has a projector; one of "
        f"shape {tuple(p.shape)} in layer {layer!r} has none (a norm, a bias, an embedding?). Freeze it "
        "(requires_grad_(False)) or leave it out of the protected group."
    )


def no_anchor_gradient(layer: str) -> str:
    """The message about a layer whose step nothing says the direction of."""
    return (
        f"A protected layer moves only along its anchor gradient's half-space; layer {layer!r} has task gradients and "
        "no anchor gradient. Set `param.anchor_grad` to the gradient of the anchor penalty before each step and after "
        "`zero_grad`, or leave `layer` out of the group to train it unprotected."
    )

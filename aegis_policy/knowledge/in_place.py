"""Whether the weights that are protected are still those that the network computes with.

Anchor gradients and projectors belong to parameters as the optimizer got them. A trainer that wraps the policy
afterwards may take those parameters apart: FSDP1 and DeepSpeed's ZeRO-3 flatten them, `fully_shard` (FSDP2) puts
DTensors in their place. Training would then go on unprotected, so it is refused at its first step.
"""

from collections.abc import Mapping

import torch
from torch import nn

from aegis_policy.aegis import is_sharded

_REMEDY = (
    "With lerobot-train use data parallelism (accelerate launch without --use_fsdp or --use_deepspeed): its FSDP is "
    "version 1, which flattens weights. In your own loop apply torch.distributed.fsdp.fully_shard before "
    "get_optim_params() and use --policy.projection=subspace. docs/distributed.md has both."
)


def require_in_place(
    module: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    shapes: Mapping[str, torch.Size],
    *,
    anchor_gradient: bool,
) -> None:
    """Refuses weights that have been replaced or taken apart since the optimizer got them.

    Args:
        module: Of which the names are.
        parameters: Qualified name -> parameter in the optimizer.
        shapes: Their shapes when the policy was built.
        anchor_gradient: Whether each step wants an anchor gradient beside them.

    Raises:
        RuntimeError: With the remedy.
    """
    for name, known in parameters.items():
        if is_sharded(known):
            if anchor_gradient:
                raise RuntimeError(
                    "The anchor gradient is that of the weights in the forward pass, where fully_shard has put whole "
                    f"ones in the place of their shards; {name!r} is a shard. Use --policy.projection=subspace, which "
                    "needs no anchor gradient, or data parallelism (DistributedDataParallel)."
                )
            continue  # inside the forward pass the whole weight stands in its place
        if known.shape != shapes[name] or _now(module, name) is not known:
            raise RuntimeError(
                "knowledge=aegis protects each weight as the optimizer got it, and something has since flattened or "
                f"replaced {name!r} (shape {tuple(shapes[name])}). {_REMEDY}"
            )


def _now(module: nn.Module, name: str) -> object:
    path, _, leaf = name.rpartition(".")
    try:
        return getattr(module.get_submodule(path), leaf, None)
    except AttributeError:
        return None

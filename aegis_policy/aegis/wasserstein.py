"""The anchor penalty of one layer: squared Wasserstein-2 distance of diagonal Gaussians (arXiv 2604.16067).

    W2^2(N(mu, diag sigma^2), N(mu*, diag sigma*^2)) = ||mu - mu*||^2 + ||sigma - sigma*||^2

`D` width; `...` any leading dimensions (batch, tokens). Everything is computed in float32 or better.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from aegis_policy.aegis.precision import at_least_float32
from aegis_policy.aegis.ranks import average_all_over_ranks, world_size
from aegis_policy.aegis.statistics import check_rows


def wasserstein2(mean: Tensor, std: Tensor, anchor_mean: Tensor, anchor_std: Tensor) -> Tensor:
    """Squared Wasserstein-2 distance of two diagonal Gaussians, differentiable.

    Args:
        mean: Means of the current activations, (D,).
        std: Standard deviations of the current activations, (D,).
        anchor_mean: Means of the anchor, (D,).
        anchor_std: Standard deviations of the anchor, (D,).

    Returns:
        A scalar, the *sum* over the channels as in the paper, float32 or better.

    Raises:
        ValueError: If the four shapes differ (broadcasting would hide a mix-up of layers).
    """
    shapes = [tuple(t.shape) for t in (mean, std, anchor_mean, anchor_std)]
    if len(set(shapes)) != 1:
        raise ValueError(
            "wasserstein2 compares moments of one layer, so all four have one shape (D,); received "
            f"{shapes}. Take the anchor's moments of the same layer."
        )
    dtype = at_least_float32(mean.dtype)
    mean_shift = mean.to(dtype) - anchor_mean.to(dtype)
    std_shift = std.to(dtype) - anchor_std.to(dtype)
    return mean_shift.square().sum() + std_shift.square().sum()


def masked_moments(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Per-channel mean and population standard deviation over the unmasked tokens, differentiable.

    A channel that does not vary has standard deviation 0 and, by convention, gradient 0 (that of the square
    root is infinite there). What stands in masked positions, NaN included, has no influence. If nothing is
    unmasked the result is NaN: checking would cost a device synchronisation a layer, and NaN is loud.

    Args:
        x: Activations, (..., D).
        mask: True (or non-zero) where a token counts, shape `x.shape[:-1]`; None counts all.

    Returns:
        Mean (D,) and standard deviation (D,), float32 or better.

    Raises:
        ValueError: If the mask's shape is not `x.shape[:-1]`.
    """
    check_rows(x, mask, width=None)
    x = x.to(at_least_float32(x.dtype)).reshape(-1, x.shape[-1])  # (N, D)
    if mask is None:
        mean = x.mean(0)
        variance = (x - mean).square().mean(0)
    else:
        kept = mask.reshape(-1, 1).bool()  # (N, 1)
        count = kept.sum()
        mean = torch.where(kept, x, 0.0).sum(0) / count
        variance = torch.where(kept, x - mean, 0.0).square().sum(0) / count
    return mean, _root(variance)


def pooled_moments(xs: Sequence[Tensor], mask: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """`masked_moments` of several layers over the tokens of all ranks, in two small messages for all of them.

    Every rank must take part; a rank may have no unmasked token. The gradient is that of this rank's tokens, see
    `aegis_policy.aegis.ranks`. In a single process it is `masked_moments` of each.

    Args:
        xs: Activations of each layer, (..., D), on the same tokens; all of one dtype and device.
        mask: As in `masked_moments`, for all of them.

    Returns:
        Mean (D,) and standard deviation (D,) a layer, float32 or better.
    """
    if world_size() == 1:
        return [masked_moments(x, mask) for x in xs]
    for x in xs:
        check_rows(x, mask, width=None)
    rows = [x.to(at_least_float32(x.dtype)).reshape(-1, x.shape[-1]) for x in xs]  # (N, D) each
    kept = (torch.ones_like(rows[0][:, :1]) if mask is None else mask.reshape(-1, 1)).bool()  # (N, 1)
    sums = [torch.where(kept, x, 0.0).sum(0) for x in rows]
    *sums, count = average_all_over_ranks([*sums, kept.sum().to(sums[0].dtype)])
    means = [s / count for s in sums]
    # Deviations sum to 0 over all ranks, though not over one: there is no gradient through the mean in them.
    squares = [torch.where(kept, x - m.detach(), 0.0).square().sum(0) for x, m in zip(rows, means, strict=True)]
    return [(m, _root(s / count)) for m, s in zip(means, average_all_over_ranks(squares), strict=True)]


def _root(variance: Tensor) -> Tensor:
    """Standard deviation of a variance that may be 0, with slope 0 there."""
    varies = variance > 0
    # The inner `where` keeps the square root's infinite slope out of the graph; NaN must stay NaN.
    return torch.where(varies, torch.where(varies, variance, 1.0).sqrt(), variance)
